// SPDX-License-Identifier: Apache-2.0
// Objects of a checkpoint that others write or read by their path: copies of disks.
#include <sys/stat.h>
#include <unistd.h>

#include "unit/store/disks_fixture.h"
#include "vmsieve/base/endian.h"
#include "vmsieve/base/fd.h"

namespace vmsieve {
namespace {

using ::testing::HasSubstr;

// ---- objects that others write --------------------------------------------------------------

class ObjectFileTest : public DisksTest {
 protected:
  /// What finish_file() says of an object with this content.
  Result<ObjectRecord> written(const std::string& id, const std::string& content) {
    auto writer = store_->begin_as(id);
    EXPECT_TRUE(writer.ok());
    const auto file = (*writer)->create_file("disk-0");
    EXPECT_TRUE(file.ok());
    EXPECT_TRUE(write_all(file->get(), as_byte_span(content), "disk-0").ok());
    return (*writer)->finish_file("disk-0");
  }
};

TEST_F(ObjectFileTest, FinishingTellsSizeAndChecksum) {
  u64 id = 0x1000;
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{1} << 20,
                                  (std::size_t{1} << 20) + 1, std::size_t{3000001}}) {
    std::string content(bytes, '\0');
    for (std::size_t i = 0; i < bytes; ++i) content[i] = static_cast<char>(i * 7 + i / 256);
    const auto record = written(fmt::format("{:016x}", id++), content);
    ASSERT_TRUE(record.ok()) << record.error().message();
    EXPECT_EQ(record->name, "disk-0");
    EXPECT_EQ(record->bytes, bytes);
    EXPECT_EQ(record->checksum, checksum(as_byte_span(content)));
  }
}

TEST_F(ObjectFileTest, TheFileIsEmptySecretAndForReadingToo) {
  auto writer = store_->begin_as(kId);
  const auto file = (*writer)->create_file("disk-0");
  ASSERT_TRUE(file.ok());
  struct stat info {};
  ASSERT_EQ(::fstat(file->get(), &info), 0);
  EXPECT_EQ(info.st_size, 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  EXPECT_TRUE(pwrite_all(file->get(), as_byte_span(std::string_view{"qcow2"}), 100, "disk-0").ok());
  std::vector<std::byte> back(5);
  EXPECT_TRUE(pread_exact(file->get(), back, 100, "disk-0").ok());
  EXPECT_EQ(back, bytes_of("qcow2"));
}

TEST_F(ObjectFileTest, WhatAnotherDescriptorWroteCounts) {
  auto writer = store_->begin_as(kId);
  ASSERT_TRUE((*writer)->create_file("disk-0").ok());
  write_file(folder() / "disk-0", "by QEMU");
  const auto record = (*writer)->finish_file("disk-0");
  ASSERT_TRUE(record.ok());
  EXPECT_EQ(record->bytes, 7u);
  EXPECT_EQ(record->checksum, checksum(as_byte_span(std::string_view{"by QEMU"})));
}

TEST_F(ObjectFileTest, ItBecomesPartOfTheCheckpoint) {
  auto writer = store_->begin_as(kId);
  auto manifest = write_sample(**writer, {.id = kId});
  const auto file = (*writer)->create_file("disk-0");
  ASSERT_TRUE(write_all(file->get(), as_byte_span(std::string_view{"disk"}), "disk-0").ok());
  EXPECT_THAT((*writer)->commit(*manifest).error().message(), HasSubstr("disk-0 is not finished"));
  const auto record = (*writer)->finish_file("disk-0");
  ASSERT_TRUE(record.ok());
  EXPECT_THAT((*writer)->commit(*manifest).error().message(), HasSubstr("disk-0 of 4 bytes is not as"));
  manifest->objects.push_back(*record);
  manifest->stored_bytes += record->bytes;
  const auto committed = (*writer)->commit(*manifest);
  ASSERT_TRUE(committed.ok()) << committed.error().message();
  EXPECT_EQ(fault_of(*store_, kId), "");
  std::vector<std::byte> back(4);
  ASSERT_TRUE((*store_->open(kId, "disk-0"))->read(0, back).ok());
  EXPECT_EQ(back, bytes_of("disk"));
  write_file(folder() / "disk-0", "dish");
  EXPECT_THAT(fault_of(*store_, kId), HasSubstr("disk-0"));
}

TEST_F(ObjectFileTest, AnObjectIsMadeAndFinishedOnce) {
  auto writer = store_->begin_as(kId);
  ASSERT_TRUE((*writer)->create_file("disk-0").ok());
  EXPECT_FALSE((*writer)->create_file("disk-0").ok());
  EXPECT_FALSE((*writer)->create("disk-0").ok());
  ASSERT_TRUE((*writer)->finish_file("disk-0").ok());
  EXPECT_EQ((*writer)->finish_file("disk-0").error().kind(), ErrorKind::kUsage);
}

TEST_F(ObjectFileTest, WhatWasNotMadeCannotBeFinished) {
  auto writer = store_->begin_as(kId);
  for (const char* name : {"disk-0", "", "..", "../x"})
    EXPECT_EQ((*writer)->finish_file(name).error().kind(), ErrorKind::kUsage) << name;
}

TEST_F(ObjectFileTest, ItHasNoPathForAName) {
  auto writer = store_->begin_as(kId);
  for (const char* name : {"", "..", "../x", "a/b", "manifest", "retired", "writing", "disks", "disks.new"})
    EXPECT_EQ((*writer)->create_file(name).error().kind(), ErrorKind::kUsage) << name;
}

TEST_F(ObjectFileTest, NoneIsMadeAfterTheCommit) {
  auto writer = store_->begin_as(kId);
  const auto manifest = write_sample(**writer, {.id = kId});
  ASSERT_TRUE((*writer)->commit(*manifest).ok());
  EXPECT_EQ((*writer)->create_file("disk-0").error().kind(), ErrorKind::kUsage);
}

// ---- where objects are ------------------------------------------------------------------------

TEST_F(DisksTest, AnObjectsPathIsAbsoluteAndOfThatObject) {
  commit();
  const auto path = store_->object_path(kId, "device");
  ASSERT_TRUE(path.ok()) << path.error().message();
  EXPECT_EQ(*path, fs::canonical(folder() / "device").string());
}

TEST_F(DisksTest, AnObjectsPathIsAbsoluteInAStoreThatIsNot) {
  commit();
  const std::string relative = fs::relative(root_).string();
  ASSERT_FALSE(relative.starts_with('/'));
  const auto store = DirectoryStore::open_path(relative, false);
  ASSERT_TRUE(store.ok());
  EXPECT_EQ(*(*store)->object_path(kId, "memory"), fs::canonical(folder() / "memory").string());
}

TEST_F(DisksTest, WhatIsNoObjectHasNoPath) {
  commit_with_disks();
  for (const char* name : {"disk-0", "", "..", "../x", "manifest", "disks"})
    EXPECT_EQ(store_->object_path(kId, name).error().kind(), ErrorKind::kNotFound) << name;
  for (const char* id : {kOther, "", "..", "../checkpoints/00000000000000a1"})
    EXPECT_EQ(store_->object_path(id, "memory").error().kind(), ErrorKind::kNotFound) << id;
}

TEST_F(DisksTest, ASymbolicLinkInPlaceOfAnObjectHasNoPath) {
  commit();
  fs::rename(folder() / "memory", directory_.path() / "elsewhere");
  fs::create_symlink(directory_.path() / "elsewhere", folder() / "memory");
  EXPECT_EQ(store_->object_path(kId, "memory").error().kind(), ErrorKind::kDamaged);
}

}  // namespace
}  // namespace vmsieve
