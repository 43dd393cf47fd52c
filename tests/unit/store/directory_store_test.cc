// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/directory_store.h"

#include <sys/stat.h>
#include <unistd.h>

#include "unit/store/store_fixture.h"
#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<std::string> ids(const Listing& listing) {
  std::vector<std::string> out;
  for (const Manifest& manifest : listing.checkpoints) out.push_back(manifest.id);
  return out;
}

unsigned mode_of(const fs::path& path) {
  struct stat info {};
  EXPECT_EQ(::lstat(path.c_str(), &info), 0) << path;
  return info.st_mode & 07777;
}

TEST(OpenDirectoryStore, MakesTheDirectoryAndItsParents) {
  const TemporaryDirectory directory;
  const std::string path = (directory.path() / "a/b/store").string();
  const auto store = open_directory_store(path, true);
  ASSERT_TRUE(store.ok()) << store.error().message();
  EXPECT_EQ((*store)->name(), path);
  EXPECT_EQ(read_file(path + "/vmsieve-store"), "vmsieve-store 1\n");
  EXPECT_EQ(mode_of(path), 0700u);
  EXPECT_EQ(mode_of(path + "/vmsieve-store"), 0600u);
  EXPECT_TRUE(open_directory_store(path, false).ok());
}

TEST(OpenDirectoryStore, WithoutCreateAMissingDirectoryIsNotFound) {
  const TemporaryDirectory directory;
  const auto store = open_directory_store((directory.path() / "none").string(), false);
  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.error().kind(), ErrorKind::kNotFound);
  EXPECT_FALSE(fs::exists(directory.path() / "none"));
}

TEST(OpenDirectoryStore, AnEmptyDirectoryBecomesAStoreOnlyWithCreate) {
  const TemporaryDirectory directory;
  const std::string path = directory.path().string();
  EXPECT_EQ(open_directory_store(path, false).error().kind(), ErrorKind::kNotFound);
  EXPECT_TRUE(fs::is_empty(path));
  fs::create_directory(directory.path() / "lost+found");
  EXPECT_TRUE(open_directory_store(path, true).ok());
}

TEST(OpenDirectoryStore, ACrashWhileMakingAStoreIsMadeGood) {
  const TemporaryDirectory directory;
  write_file(directory.path() / "vmsieve-store.0123456789abcdef.new", "vmsie");
  const auto store = open_directory_store(directory.path().string(), true);
  ASSERT_TRUE(store.ok());
  EXPECT_EQ(*(*store)->sweep(), 1u);
  EXPECT_FALSE(fs::exists(directory.path() / "vmsieve-store.0123456789abcdef.new"));
}

TEST(OpenDirectoryStore, ForeignContentIsNeverWrittenTo) {
  const TemporaryDirectory directory;
  write_file(directory.path() / "thesis.tex", "dear");
  for (const bool create : {false, true}) {
    const auto store = open_directory_store(directory.path().string(), create);
    ASSERT_FALSE(store.ok());
    EXPECT_EQ(store.error().kind(), ErrorKind::kUsage);
    EXPECT_THAT(store.error().message(),
                AllOf(HasSubstr(directory.path().string()), HasSubstr("holds other files")));
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(directory.path()), {}), 1);
}

TEST(OpenDirectoryStore, OfAnotherVersionIsUnsupported) {
  const TemporaryDirectory directory;
  write_file(directory.path() / "vmsieve-store", "vmsieve-store 12\n");
  const auto store = open_directory_store(directory.path().string(), true);
  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.error().kind(), ErrorKind::kUnsupported);
  EXPECT_THAT(store.error().message(), HasSubstr("version 12"));
}

TEST(OpenDirectoryStore, ADamagedMarkerIsDamage) {
  const TemporaryDirectory directory;
  for (const char* text : {"", "vmsieve-store", "vmsieve-store \n", "vmsieve-store 1", "vmsieve-store x\n",
                           "vmsieve-store 1\n\n"}) {
    write_file(directory.path() / "vmsieve-store", text);
    const auto store = open_directory_store(directory.path().string(), true);
    ASSERT_FALSE(store.ok()) << text;
    EXPECT_EQ(store.error().kind(), ErrorKind::kDamaged) << text;
  }
  write_file(directory.path() / "vmsieve-store", std::string(5000, 'x'));
  EXPECT_FALSE(open_directory_store(directory.path().string(), true).ok());
}

TEST(OpenDirectoryStore, AFileInItsPlaceIsAnError) {
  const TemporaryDirectory directory;
  write_file(directory.path() / "file", "x");
  EXPECT_FALSE(open_directory_store((directory.path() / "file").string(), true).ok());
  EXPECT_FALSE(open_directory_store((directory.path() / "file/below").string(), true).ok());
  EXPECT_EQ(open_directory_store("", true).error().kind(), ErrorKind::kUsage);
}

TEST(OpenDirectoryStore, WhereNothingCanBeMadeTheErrorNamesThePath) {
  const auto store = open_directory_store("/proc/vmsieve/store", true);
  ASSERT_FALSE(store.ok());
  EXPECT_THAT(store.error().message(), HasSubstr("no directory /proc/vmsieve can be made"));
}

TEST_F(StoreTest, ANewStoreIsEmpty) {
  EXPECT_THAT(store_->list()->checkpoints, IsEmpty());
  EXPECT_EQ(*store_->sweep(), 0u);
}

TEST_F(StoreTest, ACheckpointExistsFromTheCommitOn) {
  auto writer = store_->begin();
  ASSERT_TRUE(writer.ok());
  const std::string id = (*writer)->id();
  EXPECT_TRUE(is_checkpoint_id(id));
  const auto manifest = write_sample(**writer, {.id = id});
  ASSERT_TRUE(manifest.ok()) << manifest.error().message();
  EXPECT_THAT(store_->list()->checkpoints, IsEmpty());
  EXPECT_EQ(store_->manifest(id).error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(store_->open(id, "memory").error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(store_->remove(id).error().kind(), ErrorKind::kNotFound);
  ASSERT_TRUE((*writer)->commit(*manifest).ok());
  EXPECT_THAT(ids(*store_->list()), ElementsAre(id));
  EXPECT_EQ(store_->manifest(id)->vm_name, "web");
  EXPECT_TRUE(store_->open(id, "memory").ok());
}

TEST_F(StoreTest, ACommittedCheckpointConsistsOfThreeSecretFiles) {
  commit();
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder())) {
    names.push_back(entry.path().filename());
    EXPECT_EQ(mode_of(entry.path()), 0600u) << entry.path();
  }
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("memory", "device", "manifest"));
  EXPECT_EQ(mode_of(folder()), 0700u);
  EXPECT_EQ(mode_of(root_ / "checkpoints"), 0700u);
}

TEST_F(StoreTest, AWriterThatGivesUpLeavesNothing) {
  {
    auto writer = store_->begin_as(kId);
    ASSERT_TRUE(write_sample(**writer, {.id = kId}).ok());
    EXPECT_TRUE(fs::exists(folder() / "memory"));
  }
  EXPECT_FALSE(fs::exists(folder()));
}

TEST_F(StoreTest, AWriterMayOutliveTheStore) {
  auto writer = store_->begin_as(kId);
  store_.reset();
  const auto manifest = write_sample(**writer, {.id = kId});
  ASSERT_TRUE(manifest.ok());
  EXPECT_TRUE((*writer)->commit(*manifest).ok());
}

TEST_F(StoreTest, AnIdIsTakenOnce) {
  commit();
  EXPECT_EQ(store_->begin_as(kId).error().kind(), ErrorKind::kBusy);
}

TEST_F(StoreTest, AnObjectIsMadeOnce) {
  auto writer = store_->begin_as(kId);
  ASSERT_TRUE((*writer)->create("memory").ok());
  EXPECT_FALSE((*writer)->create("memory").ok());
}

TEST_F(StoreTest, ObjectsHaveNoPathsForNames) {
  auto writer = store_->begin_as(kId);
  for (const char* name : {"", "..", "../x", "a/b", "manifest", "retired", "writing", "manifest.new"}) {
    EXPECT_EQ((*writer)->create(name).error().kind(), ErrorKind::kUsage) << name;
  }
  commit(kOther);
  for (const char* name : {"", "..", "../x", "manifest", "retired"}) {
    EXPECT_EQ(store_->open(kOther, name).error().kind(), ErrorKind::kNotFound) << name;
  }
}

TEST_F(StoreTest, IdsHaveNoPathsInThem) {
  for (const char* id : {"", "..", "../../etc", "0123", "../checkpoints/1"}) {
    EXPECT_EQ(store_->manifest(id).error().kind(), ErrorKind::kNotFound) << id;
    EXPECT_EQ(store_->open(id, "memory").error().kind(), ErrorKind::kNotFound) << id;
    EXPECT_EQ(store_->remove(id).error().kind(), ErrorKind::kNotFound) << id;
  }
}

TEST_F(StoreTest, CommitRefusesAManifestThatIsNotAboutWhatWasWritten) {
  const auto refused = [this](const std::function<void(Manifest&)>& change) {
    auto writer = store_->begin_as(kId);
    auto manifest = write_sample(**writer, {.id = kId});
    change(*manifest);
    const auto committed = (*writer)->commit(*manifest);
    EXPECT_FALSE(committed.ok());
    return committed.ok() ? ErrorKind::kTimeout : committed.error().kind();
  };
  EXPECT_EQ(refused([](Manifest& m) { m.id = kOther; }), ErrorKind::kUsage);
  EXPECT_EQ(refused([](Manifest& m) { m.objects[0].bytes += 1; }), ErrorKind::kUsage);
  EXPECT_EQ(refused([](Manifest& m) { m.objects.pop_back(); }), ErrorKind::kUsage);
  EXPECT_EQ(refused([](Manifest& m) { m.objects.push_back({.name = "disk-0"}); }), ErrorKind::kUsage);
  EXPECT_EQ(refused([](Manifest& m) { m.created = "yesterday"; }), ErrorKind::kUsage);
  EXPECT_EQ(refused([](Manifest& m) { m.ancestors = {kOther}; }), ErrorKind::kNotFound);
  EXPECT_THAT(ids(*store_->list()), IsEmpty());
  EXPECT_TRUE(fs::is_empty(root_ / "checkpoints"));
}

TEST_F(StoreTest, CommitRefusesWhileAnObjectIsNotFinished) {
  auto writer = store_->begin_as(kId);
  const auto manifest = write_sample(**writer, {.id = kId});
  auto more = (*writer)->create("disk-0");
  EXPECT_THAT((*writer)->commit(*manifest).error().message(), HasSubstr("disk-0 is not finished"));
}

TEST_F(StoreTest, CommitHappensOnce) {
  auto writer = store_->begin_as(kId);
  const auto manifest = write_sample(**writer, {.id = kId});
  ASSERT_TRUE((*writer)->commit(*manifest).ok());
  EXPECT_EQ((*writer)->commit(*manifest).error().kind(), ErrorKind::kUsage);
  EXPECT_EQ((*writer)->create("more").error().kind(), ErrorKind::kUsage);
  writer->reset();
  EXPECT_THAT(ids(*store_->list()), ElementsAre(kId));
}

TEST_F(StoreTest, ListsTheOldestFirstThenById) {
  const std::string third = "00000000000000c3";
  ASSERT_TRUE(commit_sample(*store_, {.id = kId, .created = "2026-02-01T00:00:00.000Z"}).ok());
  ASSERT_TRUE(commit_sample(*store_, {.id = third, .created = "2026-01-01T00:00:00.000Z"}).ok());
  ASSERT_TRUE(commit_sample(*store_, {.id = kOther, .created = "2026-01-01T00:00:00.000Z"}).ok());
  EXPECT_THAT(ids(*store_->list()), ElementsAre(kOther, third, kId));
}

TEST_F(StoreTest, NamesThatAreNoIdsAreIgnored) {
  commit();
  fs::create_directory(root_ / "checkpoints/notes");
  write_file(root_ / "checkpoints/README", "mine");
  EXPECT_THAT(ids(*store_->list()), ElementsAre(kId));
  EXPECT_EQ(*store_->sweep(), 0u);
  EXPECT_TRUE(fs::exists(root_ / "checkpoints/README"));
}

class DamagedCheckpointTest : public StoreTest {
 protected:
  DamagedCheckpointTest() {
    commit();
    commit(kOther);
  }
  /// The listing still shows kOther, and kId as damaged with this text.
  void expect_damaged(const std::string& text) {
    const auto listing = store_->list();
    ASSERT_TRUE(listing.ok()) << listing.error().message();
    EXPECT_THAT(ids(*listing), ElementsAre(kOther));
    ASSERT_EQ(listing->damaged.size(), 1u);
    EXPECT_EQ(listing->damaged[0].id, kId);
    EXPECT_THAT(listing->damaged[0].error.message(), HasSubstr(text));
    EXPECT_EQ(*store_->resolve(kId), kId);
  }
};

TEST_F(DamagedCheckpointTest, ADamagedManifestIsListedAsSuch) {
  write_file(folder() / "manifest", "vmsieve-manifest 1 0 0000000000000000\n");
  expect_damaged("checksum");
}

TEST_F(DamagedCheckpointTest, AnEmptyManifestIsListedAsSuch) {
  write_file(folder() / "manifest", "");
  expect_damaged("magic");
}

TEST_F(DamagedCheckpointTest, AnAbsurdlyLargeManifestIsNotRead) {
  fs::resize_file(folder() / "manifest", 1ull << 40);
  expect_damaged("more than the");
}

TEST_F(DamagedCheckpointTest, AManifestOfAnotherCheckpointIsListedAsSuch) {
  fs::copy_file(folder(kOther) / "manifest", folder() / "manifest", fs::copy_options::overwrite_existing);
  expect_damaged("it is that of checkpoint 00000000000000b2");
}

TEST_F(DamagedCheckpointTest, AMissingObjectIsListedAsSuch) {
  fs::remove(folder() / "device");
  expect_damaged("object device is missing");
}

TEST_F(DamagedCheckpointTest, AnObjectOfAnotherSizeIsListedAsSuch) {
  fs::resize_file(folder() / "memory", 100);
  expect_damaged("object memory has 100 bytes instead of");
}

TEST_F(DamagedCheckpointTest, ASymbolicLinkInPlaceOfAnObjectIsRefused) {
  fs::rename(folder() / "memory", directory_.path() / "elsewhere");
  fs::create_symlink(directory_.path() / "elsewhere", folder() / "memory");
  expect_damaged("symbolic link");
  EXPECT_EQ(store_->open(kId, "memory").error().kind(), ErrorKind::kDamaged);
}

TEST_F(DamagedCheckpointTest, ASymbolicLinkInPlaceOfAManifestIsRefused) {
  fs::rename(folder() / "manifest", directory_.path() / "elsewhere");
  fs::create_symlink(directory_.path() / "elsewhere", folder() / "manifest");
  expect_damaged("symbolic link");
}

TEST_F(DamagedCheckpointTest, ASymbolicLinkInPlaceOfAFolderIsRefused) {
  fs::rename(folder(), directory_.path() / "elsewhere");
  fs::create_symlink(directory_.path() / "elsewhere", folder());
  expect_damaged("no directory");
  EXPECT_EQ(store_->manifest(kId).error().kind(), ErrorKind::kDamaged);
  EXPECT_FALSE(store_->remove(kId).ok());
  EXPECT_FALSE(store_->sweep().ok());
  EXPECT_TRUE(fs::exists(directory_.path() / "elsewhere/manifest"));
  // It does not stand in the way of others.
  EXPECT_TRUE(store_->remove(kOther).ok());
}

TEST_F(DamagedCheckpointTest, APipeInPlaceOfAnObjectIsRefusedWithoutWaiting) {
  fs::remove(folder() / "device");
  ASSERT_EQ(::mkfifo((folder() / "device").c_str(), 0600), 0);
  expect_damaged("no regular file");
}

TEST_F(DamagedCheckpointTest, ADamagedCheckpointCanBeRemoved) {
  write_file(folder() / "manifest", "");
  EXPECT_TRUE(store_->remove(kId).ok());
  EXPECT_FALSE(fs::exists(folder()));
}

TEST_F(StoreTest, RemoveLeavesNothingOfTheCheckpoint) {
  commit();
  commit(kOther);
  ASSERT_TRUE(store_->remove(kId).ok());
  EXPECT_FALSE(fs::exists(folder()));
  EXPECT_THAT(ids(*store_->list()), ElementsAre(kOther));
  EXPECT_EQ(store_->remove(kId).error().kind(), ErrorKind::kNotFound);
}

class AncestorTest : public StoreTest {
 protected:
  AncestorTest() {
    commit();
    frame_ = (*CheckpointReader::open(*store_, kId))->index().frames[2];
    const auto committed = commit_sample(*store_, {.id = kOther, .ancestor = kId, .ancestor_frame = frame_});
    EXPECT_TRUE(committed.ok()) << committed.error().message();
  }
  Frame frame_;
};

TEST_F(AncestorTest, IsOnlyRetiredWhileACheckpointNeedsIt) {
  const auto removed = store_->remove(kId);
  ASSERT_TRUE(removed.ok()) << removed.error().message();
  EXPECT_THAT(removed->needed_by, ElementsAre(kOther));
  EXPECT_THAT(ids(*store_->list()), ElementsAre(kOther));
  EXPECT_EQ(fault_of(*store_, kOther), "");
  EXPECT_THAT(store_->remove(kOther)->needed_by, IsEmpty());
  EXPECT_TRUE(fs::is_empty(root_ / "checkpoints"));
}

TEST_F(AncestorTest, IsNotProtectedByADamagedManifest) {
  write_file(folder(kOther) / "manifest", "");
  EXPECT_TRUE(store_->remove(kId).ok());
  EXPECT_FALSE(fs::exists(folder()));
}

TEST_F(AncestorTest, IsProtectedByAManifestOfANewerVersion) {
  write_file(folder(kOther) / "manifest", "vmsieve-manifest 2 0 2d06800538d394c2\n");
  const auto removed = store_->remove(kId);
  ASSERT_FALSE(removed.ok());
  EXPECT_EQ(removed.error().kind(), ErrorKind::kBusy);
  EXPECT_THAT(removed.error().message(), HasSubstr("cannot tell whether"));
  EXPECT_EQ(fault_of(*store_, kId), "");
}

TEST_F(AncestorTest, ThatIsRemovedMeanwhileMakesTheCommitFail) {
  ASSERT_TRUE(store_->remove(kOther).ok());
  const std::string third = "00000000000000c3";
  auto writer = store_->begin_as(third);
  const auto manifest = write_sample(**writer, {.id = third, .ancestor = kId, .ancestor_frame = frame_});
  ASSERT_TRUE(manifest.ok());
  ASSERT_TRUE(store_->remove(kId).ok());
  const auto committed = (*writer)->commit(*manifest);
  ASSERT_FALSE(committed.ok());
  EXPECT_EQ(committed.error().kind(), ErrorKind::kNotFound);
  EXPECT_THAT(committed.error().message(), HasSubstr("00000000000000a1, which it needs, is gone"));
}

class ResolveTest : public StoreTest {
 protected:
  ResolveTest() {
    put("00000000000000a1", "web", "2026-01-01T00:00:00.000Z");
    put("00000000000000a2", "db", "2026-01-02T00:00:00.000Z");
    put("1234000000000000", "web", "2026-01-03T00:00:00.000Z");
    put("1235000000000000", "odd@name", "2026-01-04T00:00:00.000Z");
  }
  void put(const std::string& id, const std::string& name, const std::string& created) {
    EXPECT_TRUE(commit_sample(*store_, {.id = id, .created = created, .vm_name = name}).ok());
  }
};

TEST_F(ResolveTest, AnIdIsItself) { EXPECT_EQ(*store_->resolve("00000000000000a1"), "00000000000000a1"); }

TEST_F(ResolveTest, AUniquePrefixOfFourDigitsIsEnough) {
  EXPECT_EQ(*store_->resolve("1234"), "1234000000000000");
}

TEST_F(ResolveTest, AnAmbiguousPrefixListsTheCandidates) {
  const auto resolved = store_->resolve("0000");
  ASSERT_FALSE(resolved.ok());
  EXPECT_EQ(resolved.error().kind(), ErrorKind::kAmbiguous);
  EXPECT_THAT(resolved.error().message(),
              AllOf(HasSubstr("00000000000000a1 (web"), HasSubstr("00000000000000a2 (db")));
}

TEST_F(ResolveTest, ShortPrefixesAndOtherTextsNameNothing) {
  for (const char* text :
       {"", "123", "123x", "ABCD", "12340000000000000", "web", "web@", "web@first", "../../etc"}) {
    EXPECT_EQ(store_->resolve(text).error().kind(), ErrorKind::kNotFound) << text;
  }
  EXPECT_EQ(store_->resolve("9999").error().kind(), ErrorKind::kNotFound);
}

TEST_F(ResolveTest, LatestIsTheNewestOfThatName) {
  EXPECT_EQ(*store_->resolve("web@latest"), "1234000000000000");
  EXPECT_EQ(*store_->resolve("db@latest"), "00000000000000a2");
  EXPECT_EQ(*store_->resolve("odd@name@latest"), "1235000000000000");
}

TEST_F(ResolveTest, AnUnknownNameListsTheKnownOnes) {
  const auto resolved = store_->resolve("mail@latest");
  ASSERT_FALSE(resolved.ok());
  EXPECT_EQ(resolved.error().kind(), ErrorKind::kNotFound);
  EXPECT_THAT(resolved.error().message(), HasSubstr("db, odd@name, web"));
}

TEST_F(StoreTest, BeginFailsWhenTheStoreIsNoStoreAnyMore) {
  fs::remove(root_ / "vmsieve-store");
  const auto writer = store_->begin();
  ASSERT_FALSE(writer.ok());
  EXPECT_THAT(writer.error().message(), HasSubstr("no store any more"));
  EXPECT_FALSE(fs::exists(root_ / "checkpoints"));
}

}  // namespace
}  // namespace vmsieve
