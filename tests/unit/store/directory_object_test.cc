// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/directory_object.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "unit/store/store_fixture.h"
#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Directory directory_at(const fs::path& path) {
  return {UniqueFd{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)}, path.string()};
}

std::string pattern(std::size_t size) {
  std::string text(size, '\0');
  for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 7 + i / 251);
  return text;
}

/// Writes `content` in pieces of `piece` bytes, and reads the file back.
void expect_written(const Directory& directory, const std::string& content, std::size_t piece) {
  const auto progress = std::make_shared<ObjectProgress>();
  auto writer = DirectoryObjectWriter::make(directory, "object", progress);
  ASSERT_TRUE(writer.ok()) << writer.error().message();
  for (std::size_t at = 0; at < content.size(); at += piece) {
    ASSERT_TRUE((*writer)->append(as_byte_span(std::string_view{content}.substr(at, piece))).ok());
    EXPECT_EQ((*writer)->size(), std::min(content.size(), at + piece));
  }
  EXPECT_FALSE(progress->finished);
  const auto finished = (*writer)->finish();
  ASSERT_TRUE(finished.ok()) << finished.error().message();
  EXPECT_TRUE(progress->finished);
  EXPECT_EQ(progress->bytes, content.size());
  EXPECT_EQ((*writer)->size(), content.size());
  EXPECT_TRUE(read_file(directory.path + "/object") == content);
  EXPECT_EQ((*writer)->append(as_byte_span("x")).error().kind(), ErrorKind::kUsage);
  EXPECT_EQ((*writer)->finish().error().kind(), ErrorKind::kUsage);
  fs::remove(directory.path + "/object");
}

TEST(DirectoryObjectWriter, WritesAnyLengthInAnyPieces) {
  const TemporaryDirectory temporary;
  const Directory directory = directory_at(temporary.path());
  const std::string content = pattern(DirectoryObjectWriter::kStagingBytes * 2 + 12345);
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{1}, std::size_t{4096}, std::size_t{4097},
        DirectoryObjectWriter::kStagingBytes, DirectoryObjectWriter::kStagingBytes + 1, content.size()}) {
    expect_written(directory, content.substr(0, size), 1000003);
  }
  expect_written(directory, content.substr(0, 20000), 7);
}

TEST(DirectoryObjectWriter, WritesThroughThePageCacheWhereDirectIoIsRefused) {
  const TemporaryDirectory temporary;
  // ramfs has never known direct I/O; tmpfs learnt it (kernel commit e88e0d366f9c).
  const TemporaryMount mount{temporary.path(), "", "ramfs"};
  if (!mount.mounted()) GTEST_SKIP() << "needs the right to mount";
  const Directory directory = directory_at(temporary.path());
  {
    auto writer = DirectoryObjectWriter::make(directory, "probe", std::make_shared<ObjectProgress>());
    ASSERT_TRUE(writer.ok()) << writer.error().message();
    EXPECT_FALSE(dynamic_cast<DirectoryObjectWriter&>(**writer).direct());
  }
  // More than the write-back window, with a tail.
  expect_written(directory, pattern(50 * kMiB + 17), 3 * kMiB);
}

/// Whole pages at a multiple of kPageSize.
struct Pages {
  explicit Pages(std::size_t count)
      : memory(static_cast<std::byte*>(std::aligned_alloc(kPageSize, count * kPageSize)), &std::free),
        bytes(memory.get(), count * kPageSize) {}
  std::unique_ptr<std::byte, void (*)(void*)> memory;
  std::span<std::byte> bytes;
};

/// Writes pages from where they are, between bytes of all lengths that are gathered; all must have been let
/// go of.
void expect_written_in_place(const Directory& directory, bool queued) {
  const auto progress = std::make_shared<ObjectProgress>();
  auto writer = DirectoryObjectWriter::make(directory, "object", progress);
  ASSERT_TRUE(writer.ok()) << writer.error().message();
  EXPECT_EQ(dynamic_cast<DirectoryObjectWriter&>(**writer).queued(), queued);
  std::string expected;
  Pages pages(64);
  std::vector<int> released;
  for (std::size_t i = 0; i < 200; ++i) {
    const std::string gathered = pattern(i % 3 == 0 ? kPageSize * (i % 5) : i * 13);
    ASSERT_TRUE((*writer)->append(as_byte_span(gathered)).ok());
    expected += gathered;
    // As nobody else may write there meanwhile: as soon as it is known to be written, it is used again.
    const auto piece = pages.bytes.first((1 + i % 64) * kPageSize);
    for (std::size_t word = 0; word < piece.size(); word += 8) {
      const u64 value = i * 1000003 + word;
      std::memcpy(&piece[word], &value, sizeof value);
    }
    expected.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    released.push_back(0);
    ASSERT_TRUE((*writer)->append_in_place(piece, [&released, i] { ++released[i]; }).ok());
    EXPECT_EQ((*writer)->size(), expected.size());
    while (released[i] == 0) ASSERT_TRUE((*writer)->settle_one());
  }
  const auto finished = (*writer)->finish();
  ASSERT_TRUE(finished.ok()) << finished.error().message();
  EXPECT_FALSE((*writer)->settle_one());
  EXPECT_EQ(released, std::vector<int>(200, 1));
  EXPECT_EQ(progress->bytes, expected.size());
  EXPECT_TRUE(read_file(directory.path + "/object") == expected);
}

bool direct_at(const Directory& directory) {
  auto probe = DirectoryObjectWriter::make(directory, "probe", std::make_shared<ObjectProgress>());
  return probe.ok() && dynamic_cast<DirectoryObjectWriter&>(**probe).direct();
}

TEST(DirectoryObjectWriter, WritesPagesFromWhereTheyAre) {
  const TemporaryDirectory temporary;
  const Directory directory = directory_at(temporary.path());
  expect_written_in_place(directory, direct_at(directory) && WriteQueue::make(1).ok());
}

/// As the seccomp filters of containers do. For good: only in a process of its own.
bool take_io_uring_away() {
  std::array<sock_filter, 4> program = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

TEST(DirectoryObjectWriter, WritesOneAfterTheOtherWhereThereIsNoIoUring) {
  const TemporaryDirectory temporary;
  const auto run = [&temporary] {
    if (!take_io_uring_away()) std::_Exit(2);
    expect_written_in_place(directory_at(temporary.path()), false);
    std::_Exit(HasFailure() ? 1 : 0);
  };
  EXPECT_EXIT(run(), ::testing::ExitedWithCode(0), "");
}

TEST(DirectoryObjectWriter, LetsGoOfAllPagesWhenItIsAbandoned) {
  const TemporaryDirectory temporary;
  Pages pages(256);
  int released = 0;
  {
    auto writer = DirectoryObjectWriter::make(directory_at(temporary.path()), "object",
                                              std::make_shared<ObjectProgress>());
    ASSERT_TRUE(writer.ok());
    for (int i = 0; i < 10; ++i)
      ASSERT_TRUE((*writer)->append_in_place(pages.bytes, [&released] { ++released; }).ok());
  }
  EXPECT_EQ(released, 10);
}

TEST(DirectoryObjectWriter, KeepsNoRoomThatItDidNotNeed) {
  const TemporaryDirectory temporary;
  const Directory directory = directory_at(temporary.path());
  auto writer = DirectoryObjectWriter::make(directory, "object", std::make_shared<ObjectProgress>());
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE((*writer)->append(as_byte_span(pattern(9 * kMiB + 1))).ok());
  ASSERT_TRUE((*writer)->finish().ok());
  struct stat file {};
  ASSERT_EQ(::stat((directory.path + "/object").c_str(), &file), 0);
  EXPECT_EQ(static_cast<u64>(file.st_size), 9 * kMiB + 1);
  EXPECT_LE(static_cast<u64>(file.st_blocks) * 512, 10 * kMiB);
}

TEST(DirectoryObjectWriter, NeverOverwrites) {
  const TemporaryDirectory temporary;
  write_file(temporary.path() / "object", "precious");
  const auto writer = DirectoryObjectWriter::make(directory_at(temporary.path()), "object",
                                                  std::make_shared<ObjectProgress>());
  ASSERT_FALSE(writer.ok());
  EXPECT_THAT(writer.error().message(), HasSubstr((temporary.path() / "object").string()));
  EXPECT_EQ(read_file(temporary.path() / "object"), "precious");
}

TEST(DirectoryObjectReader, ReadsInsideTheObjectOnly) {
  const TemporaryDirectory temporary;
  write_file(temporary.path() / "object", "0123456789");
  const auto reader = DirectoryObjectReader::open(directory_at(temporary.path()), "object");
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ((*reader)->size(), 10u);
  std::vector<std::byte> out(4);
  ASSERT_TRUE((*reader)->read(6, out).ok());
  EXPECT_EQ(out, bytes_of("6789"));
  for (const u64 offset : {u64{7}, u64{11}, ~u64{0}}) {
    EXPECT_EQ((*reader)->read(offset, out).error().kind(), ErrorKind::kDamaged) << offset;
  }
}

TEST(DirectoryObjectReader, WhatIsLargeForTheHostIsReadAroundItsPageCache) {
  const TemporaryDirectory temporary;
  const fs::path path = temporary.path() / "object";
  const std::string text(3 * kMaxFrameBytes, 'x');
  write_file(path, text);
  const u64 memory = static_cast<u64>(::sysconf(_SC_PHYS_PAGES)) * static_cast<u64>(::sysconf(_SC_PAGESIZE));
  const u64 size = round_down(memory / 16, kPageSize) + kPageSize + 7;  // holes behind the text
  fs::resize_file(path, size);
  const UniqueFd file = std::move(*open_file(path.string(), O_RDWR));
  ASSERT_EQ(::fsync(file.get()), 0);
  ASSERT_EQ(::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED), 0);
  const auto reader = DirectoryObjectReader::open(directory_at(temporary.path()), "object");
  ASSERT_TRUE(reader.ok());
  (*reader)->expect_one_pass();
  const auto expect = [&](u64 offset, u64 bytes) {
    std::vector<std::byte> out(bytes, std::byte{1});
    const auto read = (*reader)->read(offset, out);
    ASSERT_TRUE(read.ok()) << read.error().message();
    for (u64 i = 0; i < bytes; ++i) {
      const char expected = offset + i < text.size() ? 'x' : '\0';
      ASSERT_EQ(static_cast<char>(out[i]), expected) << offset << " + " << i;
    }
  };
  expect(0, 1);
  expect(4095, 2);
  expect(123, 2 * kMaxFrameBytes + 1);
  expect(text.size() - 5, 10);
  expect(size - 3, 3);
  expect(size - 5000, 5000);
  void* window = ::mmap(nullptr, text.size(), PROT_READ, MAP_SHARED, file.get(), 0);
  ASSERT_NE(window, MAP_FAILED);
  std::vector<unsigned char> resident(text.size() / kPageSize);
  ASSERT_EQ(::mincore(window, text.size(), resident.data()), 0);
  ::munmap(window, text.size());
  if ((::fcntl(file.get(), F_SETFL, O_DIRECT)) == 0)
    EXPECT_EQ(std::ranges::count_if(resident, [](unsigned char state) { return (state & 1) != 0; }), 0);
  fs::resize_file(path, 2 * kPageSize);
  std::vector<std::byte> out(kPageSize);
  EXPECT_EQ((*reader)->read(kPageSize + 1, out).error().kind(), ErrorKind::kDamaged);
}

TEST(DirectoryObjectReader, AFileThatShrankMeanwhileIsDamage) {
  const TemporaryDirectory temporary;
  write_file(temporary.path() / "object", "0123456789");
  const auto reader = DirectoryObjectReader::open(directory_at(temporary.path()), "object");
  fs::resize_file(temporary.path() / "object", 3);
  std::vector<std::byte> out(4);
  EXPECT_EQ((*reader)->read(2, out).error().kind(), ErrorKind::kDamaged);
}

TEST(FullDisk, AppendOrFinishFailsNamesThePathAndLeavesNothing) {
  const TemporaryDirectory temporary;
  const TemporaryMount mount{temporary.path(), "size=1m,mode=0700"};
  if (!mount.mounted()) GTEST_SKIP() << "needs the right to mount";
  const auto store = DirectoryStore::open_path(temporary.path().string(), true);
  ASSERT_TRUE(store.ok()) << store.error().message();
  {
    auto writer = (*store)->begin();
    ASSERT_TRUE(writer.ok());
    auto object = (*writer)->create("memory");
    // Some writes may be under way when it fails, and the next call tells.
    Result<void> appended;
    for (int i = 0; i < 100 && appended.ok(); ++i) appended = (*object)->append(as_byte_span(pattern(kMiB)));
    ASSERT_FALSE(appended.ok());
    EXPECT_EQ(appended.error().kind(), ErrorKind::kIo);
    EXPECT_THAT(appended.error().message(),
                AllOf(HasSubstr((*writer)->id() + "/memory"), HasSubstr("No space left on device")));
    // The error stays: nobody can finish an object with a hole in it.
    EXPECT_EQ((*object)->append(as_byte_span("x")).error().message(), appended.error().message());
    EXPECT_EQ((*object)->finish().error().message(), appended.error().message());
  }
  EXPECT_TRUE(fs::is_empty(temporary.path() / "checkpoints"));
  {
    auto writer = (*store)->begin();
    auto object = (*writer)->create("memory");
    // Whichever of them comes to know first; the error stays.
    const auto appended = (*object)->append(as_byte_span(pattern(2 * kMiB)));
    const auto finished = (*object)->finish();
    ASSERT_FALSE(finished.ok());
    if (!appended.ok()) {
      EXPECT_EQ(appended.error().message(), finished.error().message());
    }
    EXPECT_THAT(finished.error().message(), HasSubstr("No space left on device"));
  }
  EXPECT_TRUE(fs::is_empty(temporary.path() / "checkpoints"));
}

TEST(FullDisk, LetsGoOfAllPages) {
  const TemporaryDirectory temporary;
  const TemporaryMount mount{temporary.path(), "size=1m,mode=0700"};
  if (!mount.mounted()) GTEST_SKIP() << "needs the right to mount";
  Pages pages(64);
  int begun = 0;
  int released = 0;
  auto writer = DirectoryObjectWriter::make(directory_at(temporary.path()), "object",
                                            std::make_shared<ObjectProgress>());
  ASSERT_TRUE(writer.ok());
  Result<void> appended;
  for (; begun < 200 && appended.ok(); ++begun)
    appended = (*writer)->append_in_place(pages.bytes, [&released] { ++released; });
  ASSERT_FALSE(appended.ok());
  EXPECT_THAT(appended.error().message(), HasSubstr("No space left on device"));
  while ((*writer)->settle_one()) {
  }
  EXPECT_EQ(released, begun);
  EXPECT_EQ((*writer)->finish().error().message(), appended.error().message());
}

TEST(FullDisk, CommitFailsAndTheCheckpointDoesNotExist) {
  const TemporaryDirectory temporary;
  const TemporaryMount mount{temporary.path(), "size=1m,mode=0700"};
  if (!mount.mounted()) GTEST_SKIP() << "needs the right to mount";
  const auto store = DirectoryStore::open_path(temporary.path().string(), true);
  auto writer = (*store)->begin();
  auto manifest = write_sample(**writer, {.id = (*writer)->id()});
  ASSERT_TRUE(manifest.ok()) << manifest.error().message();
  manifest->command_line.assign(1, std::string(2 * kMiB, 'x'));
  const auto committed = (*writer)->commit(*manifest);
  ASSERT_FALSE(committed.ok());
  EXPECT_THAT(committed.error().message(),
              AllOf(HasSubstr("manifest.new"), HasSubstr("No space left on device")));
  writer->reset();
  EXPECT_TRUE((*store)->list()->checkpoints.empty());
  EXPECT_TRUE(fs::is_empty(temporary.path() / "checkpoints"));
}

TEST(ReadOnlyStore, CanBeReadButNotWritten) {
  const TemporaryDirectory temporary;
  TemporaryMount mount{temporary.path(), "size=4m,mode=0700"};
  if (!mount.mounted()) GTEST_SKIP() << "needs the right to mount";
  const std::string id = "00000000000000a1";
  {
    const auto store = DirectoryStore::open_path(temporary.path().string(), true);
    ASSERT_TRUE(commit_sample(**store, {.id = id}).ok());
  }
  ASSERT_TRUE(mount.set_read_only(true));
  const auto store = DirectoryStore::open_path(temporary.path().string(), true);
  ASSERT_TRUE(store.ok()) << store.error().message();
  EXPECT_EQ((*store)->list()->checkpoints.size(), 1u);
  EXPECT_EQ(fault_of(**store, id), "");
  const auto refused = AllOf(HasSubstr(temporary.path().string()), HasSubstr("Read-only file system"));
  EXPECT_THAT((*store)->begin().error().message(), refused);
  EXPECT_THAT((*store)->remove(id).error().message(), refused);
}

TEST(ReadOnlyStore, ThatBecomesSoWhileWritingFailsWithThePath) {
  const TemporaryDirectory temporary;
  TemporaryMount mount{temporary.path(), "size=4m,mode=0700"};
  if (!mount.mounted()) GTEST_SKIP() << "needs the right to mount";
  const auto store = DirectoryStore::open_path(temporary.path().string(), true);
  auto writer = (*store)->begin();
  auto manifest = write_sample(**writer, {.id = (*writer)->id()});
  ASSERT_TRUE(manifest.ok());
  ASSERT_TRUE(mount.set_read_only(true));
  EXPECT_THAT((*writer)->create("more").error().message(), HasSubstr((*writer)->id() + "/more"));
  const auto committed = (*writer)->commit(*manifest);
  ASSERT_FALSE(committed.ok());
  EXPECT_THAT(committed.error().message(), HasSubstr("Read-only file system"));
  EXPECT_TRUE((*store)->list()->checkpoints.empty());
  // Nothing could be removed; the next sweep on a healthy disk does it.
  writer->reset();
  ASSERT_TRUE(mount.set_read_only(false));
  EXPECT_EQ(*(*store)->sweep(), 1u);
}

TEST(FileLock, IsHeldByOneAtATime) {
  const TemporaryDirectory temporary;
  const Directory directory = directory_at(temporary.path());
  auto file = create_file_at(directory, "lock", O_RDONLY);
  auto held = FileLock::try_take(std::move(*file), "lock");
  ASSERT_TRUE(held.ok() && held->held());
  auto again = open_regular_at(directory, "lock", O_RDWR);
  const auto timed_out = FileLock::take(std::move(*again), "lock", 20);
  ASSERT_FALSE(timed_out.ok());
  EXPECT_EQ(timed_out.error().kind(), ErrorKind::kBusy);
  held->release();
  again = open_regular_at(directory, "lock", O_RDWR);
  const auto taken = FileLock::take(std::move(*again), "lock", 20);
  EXPECT_TRUE(taken.ok() && taken->held());
}

TEST(DirectoryObjectReader, HoldsASharedLockAsLongAsItIsOpen) {
  const TemporaryDirectory temporary;
  const Directory directory = directory_at(temporary.path());
  write_file(temporary.path() / "memory", "bytes");
  const auto lock = [&directory] {
    return FileLock::try_take(std::move(*open_regular_at(directory, "memory", O_RDWR)), "memory");
  };
  auto reader = DirectoryObjectReader::open(directory, "memory");
  auto second = DirectoryObjectReader::open(directory, "memory");
  ASSERT_TRUE(reader.ok() && second.ok());
  EXPECT_FALSE(lock()->held());
  reader->reset();
  EXPECT_FALSE(lock()->held());
  second->reset();
  EXPECT_TRUE(lock()->held());
}

TEST(DirectoryObjectReader, WaitsForTheOneWhoTakesBytes) {
  const TemporaryDirectory temporary;
  const Directory directory = directory_at(temporary.path());
  write_file(temporary.path() / "memory", "bytes");
  auto held = FileLock::try_take(std::move(*open_regular_at(directory, "memory", O_RDWR)), "memory");
  ASSERT_TRUE(held.ok() && held->held());
  auto file = open_regular_at(directory, "memory", O_RDONLY);
  EXPECT_EQ(FileLock::take_shared(std::move(*file), "memory", 20).error().kind(), ErrorKind::kBusy);
  std::jthread other([&held] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    held->release();
  });
  EXPECT_TRUE(DirectoryObjectReader::open(directory, "memory").ok());
}

}  // namespace
}  // namespace vmsieve
