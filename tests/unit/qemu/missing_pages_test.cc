// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/missing_pages.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/qemu/victim.h"
#include "vmsieve/base/fd.h"
#include "vmsieve/qemu/remote_userfaultfd.h"

namespace vmsieve {
namespace {

using namespace std::chrono_literals;
using test::Victim;
using test::VictimBoard;
using testing::HasSubstr;

constexpr u64 kPages = 64;

/// Untouched memory that a victim inherits at the same address.
class Untouched {
 public:
  explicit Untouched(UniqueFd file = UniqueFd()) : fd_(std::move(file)) {
    const int flags = fd_.valid() ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
    start_ = ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, flags, fd_.get(), 0);
    if (start_ == MAP_FAILED) std::abort();
  }
  ~Untouched() { ::munmap(start_, kPages * kPageSize); }
  Untouched(const Untouched&) = delete;
  Untouched& operator=(const Untouched&) = delete;

  u64 address(u64 page = 0) const { return reinterpret_cast<u64>(start_) + page * kPageSize; }
  ByteRange pages(u64 first, u64 end) const { return {address(first), address(end)}; }
  ByteRange all() const { return pages(0, kPages); }

 private:
  UniqueFd fd_;
  void* start_ = nullptr;
};

UniqueFd untouched_memfd() {
  UniqueFd fd{::memfd_create("test", MFD_CLOEXEC)};
  if (!fd.valid() || ::ftruncate(fd.get(), kPages * kPageSize) != 0) std::abort();
  return fd;
}

/// A victim's life: for every order, says what the first word of the page at `address` is.
void reads_on_order(VictimBoard& board) {
  for (u64 done = 0;;) {
    const u64 order = board.order;
    if (order != done) {
      board.result = static_cast<i64>(*reinterpret_cast<const volatile u64*>(board.address.load()));
      done = order;
      ++board.rounds;
    } else {
      ::usleep(50);
    }
  }
}

std::vector<std::byte> words(u64 count, u64 word) {
  std::vector<std::byte> bytes(count * kPageSize);
  for (u64 i = 0; i < bytes.size(); i += sizeof word) std::memcpy(&bytes[i], &word, sizeof word);
  return bytes;
}

class Missing : public testing::TestWithParam<bool> {
 protected:
  Missing() : memory_(GetParam() ? untouched_memfd() : UniqueFd()), victim_(reads_on_order) {}

  /// In QEMU's place, the victim keeps its descriptor.
  void share() {
    auto shared = share_userfaultfd(victim_.pid());
    ASSERT_TRUE(shared) << shared.error().message();
    theirs_ = shared->theirs;
    auto made = MissingPages::make(std::move(shared->ours));
    ASSERT_TRUE(made) << made.error().message();
    pages_.emplace(std::move(*made));
    const auto added = pages_->add(memory_.all());
    ASSERT_TRUE(added) << added.error().message();
  }
  void ask(u64 page) {
    victim_.board().address = memory_.address(page);
    ++victim_.board().order;
  }
  bool is_waiting() {
    std::this_thread::sleep_for(20ms);
    return victim_.board().rounds != victim_.board().order;
  }
  /// None when the victim waits for longer than five seconds.
  std::optional<u64> answer() {
    for (int i = 0; i < 50000 && victim_.board().rounds != victim_.board().order; ++i)
      std::this_thread::sleep_for(100us);
    if (victim_.board().rounds != victim_.board().order) return std::nullopt;
    return static_cast<u64>(victim_.board().result);
  }

  Untouched memory_;
  Victim victim_;
  std::optional<MissingPages> pages_;
  int theirs_ = -1;
};

INSTANTIATE_TEST_SUITE_P(Memory, Missing, testing::Bool(), [](const auto& instance) {
  return instance.param ? std::string("shared") : std::string("private");
});

#define SHARE_OR_RETURN() \
  share();                \
  if (!pages_) return

TEST_P(Missing, WhoeverTouchesAPageWaitsUntilItIsPlaced) {
  SHARE_OR_RETURN();
  ask(5);
  EXPECT_TRUE(is_waiting());
  const auto told = pages_->wait_for_faults(1000);
  ASSERT_TRUE(told) << told.error().message();
  EXPECT_THAT(*told, testing::Each(memory_.address(5)));
  EXPECT_FALSE(told->empty());
  ASSERT_TRUE(pages_->place(memory_.address(4), words(3, 77)));
  EXPECT_EQ(answer(), 77U);
  ask(6);
  EXPECT_EQ(answer(), 77U);
}

TEST_P(Missing, APageIsPlacedOnce) {
  SHARE_OR_RETURN();
  ASSERT_TRUE(pages_->place(memory_.address(1), words(1, 1)));
  const auto again = pages_->place(memory_.address(0), words(3, 2));
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().kind(), ErrorKind::kDamaged);
  EXPECT_THAT(again.error().message(), HasSubstr("there is a page at"));
  ask(1);
  EXPECT_EQ(answer(), 1U);
}

TEST_P(Missing, ZerosGoOnlyWherePagesAreMissing) {
  SHARE_OR_RETURN();
  ASSERT_TRUE(pages_->place(memory_.address(3), words(1, 9)));
  ask(2);
  EXPECT_TRUE(is_waiting());
  ASSERT_TRUE(pages_->place_zeros(memory_.pages(0, 8)));
  EXPECT_EQ(answer(), 0U);
  ask(3);
  EXPECT_EQ(answer(), 9U);
}

TEST_P(Missing, NothingIsMissingAfterTheEnd) {
  SHARE_OR_RETURN();
  ask(40);
  EXPECT_TRUE(is_waiting());
  pages_->end();
  EXPECT_EQ(answer(), 0U);
  const auto closed = close_descriptor(victim_.pid(), theirs_);
  EXPECT_TRUE(closed) << closed.error().message();
  EXPECT_EQ(victim_.userfaultfds(), 0U);
}

TEST_P(Missing, WithoutUsItsOwnDescriptorKeepsItWaiting) {
  SHARE_OR_RETURN();
  EXPECT_EQ(victim_.userfaultfds(), 1U);
  pages_.reset();
  ask(7);
  EXPECT_TRUE(is_waiting());
}

TEST_P(Missing, AProcessThatHasGoneHasVanished) {
  auto victim = std::make_unique<Victim>(reads_on_order);
  auto taken = take_userfaultfd(victim->pid());
  ASSERT_TRUE(taken) << taken.error().message();
  auto pages = MissingPages::make(std::move(*taken));
  ASSERT_TRUE(pages) << pages.error().message();
  ASSERT_TRUE(pages->add(memory_.all()));
  victim.reset();
  EXPECT_EQ(pages->place(memory_.address(), words(1, 1)).error().kind(), ErrorKind::kVanished);
}

TEST(MissingPagesOf, AFileOnADiskCannotBeBroughtIn) {
  const auto path = testing::TempDir() + "/missing_pages_test";
  UniqueFd file{::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
  ASSERT_TRUE(file.valid());
  ::unlink(path.c_str());
  ASSERT_EQ(::ftruncate(file.get(), kPages * kPageSize), 0);
  const Untouched memory{std::move(file)};
  const Victim victim{reads_on_order};
  auto taken = take_userfaultfd(victim.pid());
  ASSERT_TRUE(taken) << taken.error().message();
  auto pages = MissingPages::make(std::move(*taken));
  ASSERT_TRUE(pages) << pages.error().message();
  const auto added = pages->add(memory.all());
  if (added.ok()) GTEST_SKIP() << "the folder for temporary files is not on a disk";
  EXPECT_EQ(added.error().kind(), ErrorKind::kUnsupported);
}

}  // namespace
}  // namespace vmsieve
