// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/directory_object.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
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
    const std::string content = pattern(5 * kMiB);
    const auto appended = (*object)->append(as_byte_span(content));
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
    ASSERT_TRUE((*object)->append(as_byte_span(pattern(2 * kMiB))).ok());
    EXPECT_THAT((*object)->finish().error().message(), HasSubstr("No space left on device"));
  }
  EXPECT_TRUE(fs::is_empty(temporary.path() / "checkpoints"));
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
