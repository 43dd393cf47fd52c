// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <unistd.h>
#include <cerrno>
#include <thread>

#include <gtest/gtest.h>

#include "vmsieve/base/endian.h"
#include "vmsieve/base/fd.h"
#include "vmsieve/base/queue.h"
#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {
namespace {

Result<int> half(int value) {
  if (value % 2 != 0) return make_error(ErrorKind::kUsage, "{} is odd", value);
  return value / 2;
}

Result<int> quarter(int value) {
  VMSIEVE_ASSIGN(const int once, half(value));
  VMSIEVE_TRY(half(once));
  return half(once);
}

TEST(Result, CarriesTheValue) { EXPECT_EQ(*quarter(12), 3); }

TEST(Result, PassesTheFirstErrorOn) {
  const auto failed = quarter(6);
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().message(), "3 is odd");
  EXPECT_EQ(failed.error().kind(), ErrorKind::kUsage);
}

TEST(ResultDeathTest, UsingTheValueOfAFailedResultEndsTheProcess) {
  EXPECT_DEATH([[maybe_unused]] const int value = *half(1), "");
}

TEST(ResultDeathTest, ABrokenInvariantEndsTheProcess) {
  EXPECT_DEATH(VMSIEVE_CHECK(1 + 1 == 3), "broken invariant");
}

TEST(Error, ContextStandsInFront) {
  EXPECT_EQ(Error(ErrorKind::kIo, "no room").with_context("store x").message(), "store x: no room");
}

TEST(Error, ErrnoChoosesTheKind) {
  EXPECT_EQ(errno_error(EACCES, "x").kind(), ErrorKind::kPermission);
  EXPECT_EQ(errno_error(ENOENT, "x").kind(), ErrorKind::kNotFound);
  EXPECT_EQ(errno_error(ESRCH, "x").kind(), ErrorKind::kVanished);
  EXPECT_EQ(errno_error(ENOSPC, "x").kind(), ErrorKind::kIo);
  EXPECT_EQ(errno_error(ENOSPC, "cannot write").message(), "cannot write: No space left on device");
}

TEST(Endian, AppendAndLoadAreInverse) {
  std::vector<std::byte> bytes;
  append_le<u32>(bytes, 0x01020304);
  append_be<u64>(bytes, 0x0102030405060708);
  EXPECT_EQ(bytes[0], std::byte{4});
  EXPECT_EQ(bytes[4], std::byte{1});
  EXPECT_EQ(load_le<u32>(bytes.data()), 0x01020304U);
  EXPECT_EQ(load_be<u64>(bytes.data() + 4), 0x0102030405060708U);
}

TEST(Units, APfnRangeIsHalfOpen) {
  const PfnRange range{Pfn{10}, 5};
  EXPECT_TRUE(range.contains(Pfn{10}));
  EXPECT_TRUE(range.contains(Pfn{14}));
  EXPECT_FALSE(range.contains(Pfn{15}));
  EXPECT_FALSE(range.contains(Pfn{9}));
}

TEST(UniqueFd, ClosesOnReset) {
  auto file = make_memfd("test");
  ASSERT_TRUE(file.ok());
  const int raw = file->get();
  file->reset();
  EXPECT_EQ(::fcntl(raw, F_GETFD), -1);
}

TEST(Fd, ReadingPastTheEndIsDamage) {
  auto file = make_memfd("test");
  ASSERT_TRUE(file.ok());
  std::vector<std::byte> bytes(10);
  ASSERT_TRUE(pwrite_all(file->get(), bytes, 0, "f").ok());
  std::vector<std::byte> more(11);
  const auto read = pread_exact(file->get(), more, 0, "f");
  ASSERT_FALSE(read.ok());
  EXPECT_EQ(read.error().kind(), ErrorKind::kDamaged);
  EXPECT_EQ(*file_size(file->get(), "f"), 10U);
}

TEST(Fd, ErrorsNameThePath) {
  const auto missing = open_file("/nowhere/at/all", O_RDONLY);
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().message(), "cannot open /nowhere/at/all: No such file or directory");
}

TEST(Fd, TextFilesAreBounded) {
  EXPECT_TRUE(read_text_file("/proc/self/status", kMiB).ok());
  EXPECT_EQ(read_text_file("/dev/zero", kMiB).error().kind(), ErrorKind::kDamaged);
}

TEST(BoundedQueue, DeliversInOrderAndEndsWhenClosed) {
  BoundedQueue<int> queue(2);
  std::thread producer([&] {
    for (int i = 0; i < 100; ++i) queue.push(i);
    queue.close();
  });
  for (int i = 0; i < 100; ++i) EXPECT_EQ(queue.pop(), i);
  EXPECT_EQ(queue.pop(), std::nullopt);
  producer.join();
  EXPECT_FALSE(queue.push(1));
}

}  // namespace
}  // namespace vmsieve
