// SPDX-License-Identifier: Apache-2.0
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "unit/store/disks_fixture.h"
#include "vmsieve/image/disk_record.h"

namespace {
/// What fsync(2) says of directories; 0: what the system says.
std::atomic<int> error_of_directories{0};
}  // namespace

/// In the place of the C library's, for all of this program.
extern "C" int fsync(int fd) {
  struct stat info {};
  if (error_of_directories != 0 && ::fstat(fd, &info) == 0 && S_ISDIR(info.st_mode)) {
    errno = error_of_directories;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_fsync, fd));
}

namespace vmsieve {
namespace {

using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

// ---- a record lives as long as the disks need it -----------------------------

TEST_F(DisksTest, ARecordIsThereFromItsNoteOn) {
  auto writer = store_->begin_as(kId);
  ASSERT_TRUE(writer.ok());
  EXPECT_EQ(store_->read_disks(kId).error().kind(), ErrorKind::kNotFound);
  ASSERT_TRUE((*writer)->note_disks(kText).ok());
  EXPECT_EQ(record(), kText);
  struct stat info {};
  ASSERT_EQ(::stat((folder() / "disks").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
}

TEST_F(DisksTest, ALaterNoteReplacesTheFirst) {
  auto writer = store_->begin_as(kId);
  ASSERT_TRUE((*writer)->note_disks(kText).ok());
  ASSERT_TRUE((*writer)->note_disks("another").ok());
  EXPECT_EQ(record(), "another");
  EXPECT_THAT(names(), UnorderedElementsAre("writing", "disks"));
}

TEST_F(DisksTest, ACheckpointWithoutDisksHasNone) {
  commit();
  EXPECT_EQ(store_->read_disks(kId).error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(store_->read_disks(kOther).error().kind(), ErrorKind::kNotFound);
  for (const char* id : {"", "..", "../../etc", "0123"})
    EXPECT_EQ(store_->read_disks(id).error().kind(), ErrorKind::kNotFound) << id;
}

TEST_F(DisksTest, ItIsNoObjectOfTheCheckpoint) {
  commit_with_disks();
  EXPECT_EQ(fault_of(*store_, kId), "");
  EXPECT_EQ(store_->list()->checkpoints.size(), 1u);
  EXPECT_EQ(store_->open(kId, "disks").error().kind(), ErrorKind::kNotFound);
  auto writer = store_->begin_as(kOther);
  EXPECT_EQ((*writer)->create("disks").error().kind(), ErrorKind::kUsage);
  EXPECT_EQ((*writer)->create_file("disks").error().kind(), ErrorKind::kUsage);
}

TEST_F(DisksTest, AWriterThatGivesUpLeavesItAlone) {
  {
    auto writer = store_->begin_as(kId);
    ASSERT_TRUE((*writer)->note_disks(kText).ok());
    ASSERT_TRUE(write_sample(**writer, {.id = kId}).ok());
    EXPECT_TRUE(fs::exists(folder() / "memory"));
  }
  EXPECT_THAT(names(), ElementsAre("disks"));
  EXPECT_EQ(record(), kText);
  EXPECT_THAT(store_->list()->checkpoints, IsEmpty());
  EXPECT_THAT(store_->list()->damaged, IsEmpty());
  EXPECT_EQ(store_->manifest(kId).error().kind(), ErrorKind::kNotFound);
  EXPECT_FALSE(store_->resolve(kId).ok());
}

TEST_F(DisksTest, AWriterThatGivesUpWithoutOneLeavesNothing) {
  {
    auto writer = store_->begin_as(kId);
    ASSERT_TRUE((*writer)->create_file("disk-0").ok());
  }
  EXPECT_FALSE(fs::exists(folder()));
}

TEST_F(DisksTest, RemovingTheCheckpointLeavesItAlone) {
  commit_with_disks();
  commit(kOther);
  ASSERT_TRUE(store_->remove(kId).ok());
  EXPECT_THAT(names(), ElementsAre("disks"));
  EXPECT_EQ(record(), kText);
  EXPECT_EQ(store_->remove(kId).error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(store_->list()->checkpoints.size(), 1u);
  EXPECT_THAT(store_->list()->damaged, IsEmpty());
}

TEST_F(DisksTest, ItsIdIsNotTakenAgain) {
  forsake();
  EXPECT_EQ(store_->begin_as(kId).error().kind(), ErrorKind::kBusy);
}

TEST_F(DisksTest, RetiringTheCheckpointKeepsItToo) {
  commit_chain();
  EXPECT_THAT(store_->remove(kId)->needed_by, ElementsAre(kOther));
  EXPECT_THAT(names(), UnorderedElementsAre("memory", "retired", "disks"));
  EXPECT_EQ(record(), kText);
  EXPECT_EQ(fault_of(*store_, kOther), "");
  ASSERT_TRUE(store_->sweep().ok());
  EXPECT_EQ(record(), kText);
  // Nobody needs its memory any more.
  EXPECT_TRUE(store_->remove(kOther).ok());
  EXPECT_THAT(names(), ElementsAre("disks"));
  EXPECT_FALSE(fs::exists(folder(kOther)));
  EXPECT_EQ(record(), kText);
}

TEST_F(DisksTest, NoSweepTakesIt) {
  forsake();
  commit_with_disks(kOther);
  for (const Sweep what : {Sweep::kSafe, Sweep::kAll}) {
    const auto swept = store_->sweep(what);
    ASSERT_TRUE(swept.ok()) << swept.error().message();
    EXPECT_EQ(*swept, 0u);
    EXPECT_EQ(record(), kText);
    EXPECT_EQ(record(kOther), kText);
  }
}

TEST_F(DisksTest, ASweepTakesAllThatIsAroundItButCopies) {
  forsake();
  // As after kill -9 of the writer, and of somebody who changed the record.
  for (const char* name : {"writing", "memory", "disk-0", "disks.new", "manifest.new"})
    write_file(folder() / name, "x");
  EXPECT_EQ(*store_->sweep(), 1u);
  // Files of restored guests may be over a copy.
  EXPECT_THAT(names(), ElementsAre("disk-0", "disks"));
  EXPECT_EQ(*store_->sweep(), 0u);
  ASSERT_TRUE(store_->forget_disks(kId).ok());
  EXPECT_FALSE(fs::exists(folder()));
}

TEST_F(DisksTest, ASweepTakesAHalfWrittenOneOfACheckpoint) {
  commit_with_disks();
  write_file(folder() / "disks.new", "a rec");
  EXPECT_EQ(*store_->sweep(), 1u);
  EXPECT_THAT(names(), UnorderedElementsAre("memory", "device", "manifest", "disks"));
}

TEST_F(DisksTest, ASweepTakesAHalfWrittenOneOfARetiredCheckpoint) {
  commit_chain();
  ASSERT_TRUE(store_->remove(kId).ok());
  write_file(folder() / "disks.new", "a rec");
  EXPECT_EQ(*store_->sweep(), 1u);
  EXPECT_THAT(names(), ::testing::Not(::testing::Contains("disks.new")));
  EXPECT_EQ(record(), kText);
}

TEST_F(DisksTest, ASweepLeavesWhatIsBeingWritten) {
  auto writer = store_->begin_as(kId);
  ASSERT_TRUE((*writer)->note_disks(kText).ok());
  EXPECT_EQ(*store_->sweep(), 0u);
  EXPECT_THAT(names(), UnorderedElementsAre("writing", "disks"));
}

// ---- changing it -----------------------------------------------------------------

TEST_F(DisksTest, AChangeIsMadeOfWhatIsThere) {
  commit_with_disks();
  const auto changed = store_->change_disks(kId, [](const std::string& text) -> Result<std::string> {
    EXPECT_EQ(text, kText);
    return text + "and more\n";
  });
  ASSERT_TRUE(changed.ok()) << changed.error().message();
  EXPECT_EQ(record(), "a record\nand more\n");
  EXPECT_EQ(fault_of(*store_, kId), "");
  EXPECT_THAT(names(), UnorderedElementsAre("memory", "device", "manifest", "disks"));
}

TEST_F(DisksTest, AChangeToTheSameWritesNothing) {
  commit_with_disks();
  struct stat before {
  }, after{};
  ASSERT_EQ(::stat((folder() / "disks").c_str(), &before), 0);
  ASSERT_TRUE(
      store_->change_disks(kId, [](const std::string& text) -> Result<std::string> { return text; }).ok());
  ASSERT_EQ(::stat((folder() / "disks").c_str(), &after), 0);
  EXPECT_EQ(before.st_ino, after.st_ino);
}

TEST_F(DisksTest, AChangeThatFailsLeavesWhatWas) {
  commit_with_disks();
  const auto changed = store_->change_disks(kId, [](const std::string&) -> Result<std::string> {
    return Error{ErrorKind::kIncompatible, "does not fit"};
  });
  ASSERT_FALSE(changed.ok());
  EXPECT_EQ(changed.error().kind(), ErrorKind::kIncompatible);
  EXPECT_EQ(changed.error().message(), "does not fit");
  EXPECT_EQ(record(), kText);
  // The store is not left locked.
  EXPECT_TRUE(store_->remove(kId).ok());
}

TEST_F(DisksTest, AChangeThatMayNotLastLeavesEitherOfThem) {
  commit_with_disks();
  error_of_directories = EIO;
  const auto changed = change_to("new");
  error_of_directories = 0;
  ASSERT_FALSE(changed.ok());
  EXPECT_THAT(changed.error().message(), HasSubstr("durable"));
  EXPECT_THAT(record(), AnyOf(kText, "new"));
}

TEST_F(DisksTest, ANoteThatMayNotLastLeavesEitherOfThem) {
  auto writer = store_->begin_as(kId);
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE((*writer)->note_disks(kText).ok());
  error_of_directories = EIO;
  const auto noted = (*writer)->note_disks("new");
  error_of_directories = 0;
  ASSERT_FALSE(noted.ok());
  EXPECT_THAT(noted.error().message(), HasSubstr("durable"));
  EXPECT_THAT(record(), AnyOf(kText, "new"));
}

TEST_F(DisksTest, WhatHasNoRecordHasNothingToChange) {
  commit();
  bool called = false;
  const auto change = [&](const std::string& text) -> Result<std::string> {
    called = true;
    return text;
  };
  for (const char* id : {kId, kOther, "..", ""})
    EXPECT_EQ(store_->change_disks(id, change).error().kind(), ErrorKind::kNotFound) << id;
  EXPECT_FALSE(called);
  EXPECT_FALSE(fs::exists(folder() / "disks"));
}

TEST_F(DisksTest, ARecordOfWhatIsNoCheckpointChangesAsWell) {
  forsake();
  ASSERT_TRUE(change_to("tidied").ok());
  EXPECT_EQ(record(), "tidied");
}

TEST_F(DisksTest, NoChangeIsLostAndNoReaderSeesHalfOfOne) {
  constexpr int kChanges = 100;
  commit_with_disks();
  const auto grow = [](DirectoryStore& store) {
    for (int i = 0; i < kChanges; ++i) {
      const auto changed = store.change_disks(kId, [](const std::string& text) -> Result<std::string> {
        return text + std::string(100, 'x') + "\n";
      });
      EXPECT_TRUE(changed.ok()) << changed.error().message();
    }
  };
  const auto second = DirectoryStore::open_path(root_.string(), false);
  ASSERT_TRUE(second.ok());
  std::atomic<bool> done = false;
  std::thread reader([&] {
    while (!done) {
      const std::string text = record();
      EXPECT_EQ((text.size() - std::string_view{kText}.size()) % 101, 0u);
      EXPECT_EQ(text.back(), '\n');
    }
  });
  std::thread other([&] { grow(**second); });
  grow(*store_);
  other.join();
  done = true;
  reader.join();
  EXPECT_EQ(record().size(), std::string_view{kText}.size() + 2 * kChanges * 101);
}

TEST_F(DisksTest, AnAbsurdlyLargeRecordIsNotRead) {
  forsake();
  fs::resize_file(folder() / "disks", u64{1} << 40);
  EXPECT_EQ(store_->read_disks(kId).error().kind(), ErrorKind::kDamaged);
}

TEST_F(DisksTest, ASymbolicLinkInItsPlaceIsRefused) {
  forsake();
  fs::rename(folder() / "disks", directory_.path() / "elsewhere");
  fs::create_symlink(directory_.path() / "elsewhere", folder() / "disks");
  EXPECT_EQ(store_->read_disks(kId).error().kind(), ErrorKind::kDamaged);
  EXPECT_FALSE(change_to("x").ok());
  EXPECT_EQ(read_file(directory_.path() / "elsewhere"), kText);
}

// ---- which there are -----------------------------------------------------------------

TEST_F(DisksTest, AStoreWithoutRecordsHasNone) {
  EXPECT_THAT(store_->disk_records()->checkpoints, IsEmpty());
  commit();
  const auto records = store_->disk_records();
  ASSERT_TRUE(records.ok());
  EXPECT_THAT(records->checkpoints, IsEmpty());
  EXPECT_THAT(records->forsaken, IsEmpty());
}

TEST_F(DisksTest, RecordsOfCheckpointsAreToldFromForsakenOnes) {
  const std::string third = "00000000000000c3";
  const std::string fourth = "00000000000000d4";
  commit_with_disks();
  forsake(kOther);
  commit_with_disks(third);
  ASSERT_TRUE(store_->remove(third).ok());
  auto writer = store_->begin_as(fourth);
  ASSERT_TRUE((*writer)->note_disks(kText).ok());
  fs::create_directory(root_ / "checkpoints/notes");
  write_file(root_ / "checkpoints/notes/disks", "mine");

  auto records = store_->disk_records();
  ASSERT_TRUE(records.ok()) << records.error().message();
  EXPECT_THAT(records->checkpoints, ElementsAre(kId));
  EXPECT_THAT(records->forsaken, ElementsAre(kOther, third));

  writer->reset();
  records = store_->disk_records();
  EXPECT_THAT(records->checkpoints, ElementsAre(kId));
  EXPECT_THAT(records->forsaken, ElementsAre(kOther, third, fourth));
}

TEST_F(DisksTest, AKilledWritersRecordIsForsaken) {
  forsake();
  write_file(folder() / "writing", "");
  EXPECT_THAT(store_->disk_records()->forsaken, ElementsAre(kId));
  EXPECT_THAT(store_->disk_records()->checkpoints, IsEmpty());
}

TEST_F(DisksTest, AWriterKilledAfterTheCommitLeftACheckpoint) {
  commit_with_disks();
  write_file(folder() / "writing", "");
  EXPECT_THAT(store_->disk_records()->checkpoints, ElementsAre(kId));
  EXPECT_THAT(store_->disk_records()->forsaken, IsEmpty());
}

TEST_F(DisksTest, ARetiredCheckpointsRecordIsForsaken) {
  commit_chain();
  ASSERT_TRUE(store_->remove(kId).ok());
  EXPECT_THAT(store_->disk_records()->forsaken, ElementsAre(kId));
  EXPECT_THAT(store_->disk_records()->checkpoints, IsEmpty());
}

TEST_F(DisksTest, ADamagedCheckpointIsOneStill) {
  commit_with_disks();
  write_file(folder() / "manifest", "");
  EXPECT_THAT(store_->disk_records()->checkpoints, ElementsAre(kId));
  EXPECT_THAT(store_->disk_records()->forsaken, IsEmpty());
}

TEST_F(DisksTest, AskingDoesNotDisturbTheWriter) {
  auto writer = store_->begin_as(kId);
  ASSERT_TRUE((*writer)->note_disks(kText).ok());
  const auto manifest = write_sample(**writer, {.id = kId});
  EXPECT_THAT(store_->disk_records()->forsaken, IsEmpty());
  EXPECT_THAT(store_->disk_records()->checkpoints, IsEmpty());
  ASSERT_TRUE((*writer)->commit(*manifest).ok());
  EXPECT_THAT(store_->disk_records()->checkpoints, ElementsAre(kId));
}

// ---- forgetting them -------------------------------------------------------------------

TEST_F(DisksTest, ForgettingRemovesTheFolderOfWhatIsNoCheckpoint) {
  forsake();
  commit_with_disks(kOther);
  ASSERT_TRUE(store_->remove(kOther).ok());
  for (const char* id : {kId, kOther}) {
    const auto forgotten = store_->forget_disks(id);
    ASSERT_TRUE(forgotten.ok()) << forgotten.error().message();
    EXPECT_FALSE(fs::exists(folder(id)));
    EXPECT_EQ(store_->read_disks(id).error().kind(), ErrorKind::kNotFound);
  }
  EXPECT_THAT(store_->disk_records()->forsaken, IsEmpty());
  EXPECT_TRUE(store_->begin_as(kId).ok());
}

TEST_F(DisksTest, ForgettingKeepsTheFolderOfACheckpoint) {
  commit_with_disks();
  ASSERT_TRUE(store_->forget_disks(kId).ok());
  EXPECT_THAT(names(), UnorderedElementsAre("memory", "device", "manifest"));
  EXPECT_EQ(fault_of(*store_, kId), "");
  EXPECT_EQ(store_->read_disks(kId).error().kind(), ErrorKind::kNotFound);
}

TEST_F(DisksTest, ForgettingKeepsWhatARetiredCheckpointKeeps) {
  commit_chain();
  ASSERT_TRUE(store_->remove(kId).ok());
  ASSERT_TRUE(store_->forget_disks(kId).ok());
  EXPECT_THAT(names(), UnorderedElementsAre("memory", "retired"));
  EXPECT_EQ(fault_of(*store_, kOther), "");
}

TEST_F(DisksTest, ForgettingKeepsWhatIsBeingWritten) {
  auto writer = store_->begin_as(kId);
  ASSERT_TRUE((*writer)->note_disks(kText).ok());
  const auto manifest = write_sample(**writer, {.id = kId});
  ASSERT_TRUE(store_->forget_disks(kId).ok());
  EXPECT_THAT(names(), UnorderedElementsAre("memory", "device", "writing"));
  EXPECT_TRUE((*writer)->commit(*manifest).ok());
  EXPECT_EQ(fault_of(*store_, kId), "");
}

TEST_F(DisksTest, ForgettingTwiceIsNotFound) {
  forsake();
  ASSERT_TRUE(store_->forget_disks(kId).ok());
  EXPECT_EQ(store_->forget_disks(kId).error().kind(), ErrorKind::kNotFound);
}

TEST_F(DisksTest, ASweepEndsAForgettingThatWasInterrupted) {
  forsake();
  fs::remove(folder() / "disks");
  EXPECT_EQ(*store_->sweep(), 1u);
  EXPECT_FALSE(fs::exists(folder()));
}

// ---- one at a time -----------------------------------------------------------------------

TEST_F(DisksTest, OneAtATimePutsDisksBackTogether) {
  const auto second = DirectoryStore::open_path(root_.string(), false);
  ASSERT_TRUE(second.ok());
  auto held = store_->lock_disks();
  ASSERT_TRUE(held.ok()) << held.error().message();
  const auto refused = (*second)->lock_disks();
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind(), ErrorKind::kBusy);
  EXPECT_THAT(refused.error().message(), HasSubstr(root_.string()));
  held->reset();
  EXPECT_TRUE((*second)->lock_disks().ok());
}

TEST_F(DisksTest, NobodyElseWaitsForThatLock) {
  const auto held = store_->lock_disks();
  ASSERT_TRUE(held.ok());
  commit_with_disks();
  EXPECT_TRUE(change_to("new").ok());
  EXPECT_TRUE(store_->remove(kId).ok());
  EXPECT_TRUE(store_->sweep().ok());
  EXPECT_TRUE(store_->forget_disks(kId).ok());
}

}  // namespace
}  // namespace vmsieve
