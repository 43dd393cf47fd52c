// SPDX-License-Identifier: Apache-2.0
// Old checkpoints of a chain are removed while younger ones need their frames.
#include <algorithm>

#include "unit/store/chain_fixture.h"
#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr const char* kNewerManifest = "vmsieve-manifest 2 0 2d06800538d394c2\n";

std::vector<std::string> names_in(const fs::path& path) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path)) names.push_back(entry.path().filename());
  return names;
}

class RetiredTest : public ChainTest {
 protected:
  RetiredTest() { commit_family(); }
};

TEST_F(RetiredTest, StopsExistingAndKeepsItsMemoryForOthers) {
  EXPECT_THAT(remove(kA), ElementsAre(kB, kC, kD));
  EXPECT_THAT(listed(), ElementsAre(kB, kC, kD));
  EXPECT_EQ(store_->manifest(kA).error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(store_->resolve(kA).error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(store_->remove(kA).error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(CheckpointReader::open(*store_, kA).error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(store_->begin_as(kA).error().kind(), ErrorKind::kBusy);
  EXPECT_TRUE(store_->open(kA, "memory").ok());
  EXPECT_EQ(store_->open(kA, "device").error().kind(), ErrorKind::kNotFound);
  EXPECT_THAT(names_in(folder(kA)), UnorderedElementsAre("memory", "retired"));
}

TEST_F(RetiredTest, GoesWithTheLastThatNeedsIt) {
  remove(kA);
  EXPECT_THAT(remove(kC), IsEmpty());
  EXPECT_THAT(remove(kB), ElementsAre(kD));
  EXPECT_TRUE(fs::exists(folder(kA)));
  EXPECT_THAT(remove(kD), IsEmpty());
  EXPECT_TRUE(fs::is_empty(root_ / "checkpoints"));
}

TEST_F(RetiredTest, EveryOrderOfRemovalLeavesTheOthersWhole) {
  const fs::path whole = directory_.path() / "whole";
  fs::copy(root_ / "checkpoints", whole, fs::copy_options::recursive);
  std::vector<std::string> order = {kA, kB, kC, kD};
  for (const bool sweeping : {true, false}) {
    do {
      SCOPED_TRACE(fmt::format("{} {}", fmt::join(order, " "), sweeping));
      fs::remove_all(root_ / "checkpoints");
      fs::copy(whole, root_ / "checkpoints", fs::copy_options::recursive);
      std::set<std::string> left{order.begin(), order.end()};
      for (const std::string& id : order) {
        remove(id);
        left.erase(id);
        if (sweeping) {
          EXPECT_EQ(sweep(), 0u);
        }
        EXPECT_THAT(listed(), ::testing::ElementsAreArray(left));
        for (const std::string& other : left) expect_whole(other);
      }
      EXPECT_TRUE(fs::is_empty(root_ / "checkpoints"));
    } while (std::next_permutation(order.begin(), order.end()));
  }
}

TEST_F(RetiredTest, GrowsOnAfterTheParentOfTheParentIsGone) {
  remove(kA);
  sweep();
  const std::string young = "00000000000000e5";
  commit_link(young, kC, {0});
  expect_whole(young);
  remove(kB);
  remove(kC);
  sweep();
  expect_whole(young);
  expect_whole(kD);
  remove(young);
  remove(kD);
  EXPECT_TRUE(fs::is_empty(root_ / "checkpoints"));
}

TEST_F(RetiredTest, GivesBackWhatNobodyNeeds) {
  if (!can_punch()) GTEST_SKIP() << "the file system cannot make holes";
  auto reader = std::move(*CheckpointReader::open(*store_, kA));
  const std::vector<Frame> frames = reader->index().frames;
  const u64 frames_end = reader->frames_end(0);
  reader.reset();
  const u64 size = fs::file_size(folder(kA) / "memory");
  const u64 all = stored(kA);
  const u64 all_of_b = stored(kB);
  remove(kA);
  EXPECT_EQ(sweep(), 0u);
  // Nobody shows 0 to 5 of A; 6 is B's too.
  EXPECT_EQ(all - stored(kA), frames[6].offset - kMemoryHeaderBytes);
  remove(kB);
  remove(kC);
  EXPECT_EQ(sweep(), 0u);
  // D shows 6 and 7 of A, and 2 to 5 of B.
  EXPECT_EQ(all - stored(kA), frames[6].offset - kMemoryHeaderBytes + (frames_end - frames[8].offset));
  EXPECT_EQ(fs::file_size(folder(kA) / "memory"), size);
  EXPECT_EQ(all_of_b - stored(kB), 2 * kFramePages * kPageSize);
  expect_whole(kD);
}

TEST_F(RetiredTest, KeepsHeaderIndexAndTrailer) {
  const std::string before = read_file(folder(kA) / "memory");
  const u64 end = (*CheckpointReader::open(*store_, kA))->frames_end(0);
  for (const char* id : {kA, kB, kC}) remove(id);
  sweep();
  const std::string after = read_file(folder(kA) / "memory");
  EXPECT_NE(before, after);
  EXPECT_EQ(before.substr(0, kMemoryHeaderBytes), after.substr(0, kMemoryHeaderBytes));
  EXPECT_EQ(before.substr(end), after.substr(end));
}

TEST_F(RetiredTest, AReaderOfTheCheckpointThatIsRemovedReadsOn) {
  auto reader = CheckpointReader::open(*store_, kA);
  ASSERT_TRUE(reader.ok());
  const u64 before = stored(kA);
  remove(kA);
  EXPECT_EQ(sweep(), 0u);
  EXPECT_TRUE((*reader)->device_state().ok());
  EXPECT_TRUE((*reader)->verify().ok());
  EXPECT_EQ(stored(kA), before);
  EXPECT_FALSE(fs::exists(folder(kA) / "retired.punched"));
  reader->reset();
  sweep();
  EXPECT_TRUE(fs::exists(folder(kA) / "retired.punched"));
  if (can_punch()) {
    EXPECT_LT(stored(kA), before);
  }
}

TEST_F(RetiredTest, AReaderOfADependentThatIsRemovedReadsOn) {
  remove(kA);
  remove(kB);
  sweep();
  const auto reader = CheckpointReader::open(*store_, kC);
  ASSERT_TRUE(reader.ok());
  remove(kC);
  sweep();
  EXPECT_TRUE((*reader)->verify().ok());
  remove(kD);
  EXPECT_TRUE(fs::is_empty(root_ / "checkpoints"));
  EXPECT_TRUE((*reader)->verify().ok());
}

TEST_F(RetiredTest, AHintGoesWithItsCheckpoint) {
  EXPECT_EQ(store_->read_hint(kB).error().kind(), ErrorKind::kNotFound);
  for (const char* id : {kA, kB, kD}) ASSERT_TRUE(store_->write_hint(id, "one"));
  ASSERT_TRUE(store_->write_hint(kB, "another"));
  EXPECT_EQ(*store_->read_hint(kB), "another");
  expect_whole(kB);
  write_file(folder(kB) / "working-set.hint.new", "half");
  EXPECT_GT(*store_->sweep(), 0U);
  EXPECT_EQ(*store_->read_hint(kB), "another");
  remove(kA);  // others need it
  EXPECT_EQ(store_->read_hint(kA).error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(store_->write_hint(kA, "late").error().kind(), ErrorKind::kNotFound);
  for (const char* id : {kB, kC, kD}) remove(id);
  sweep();
  EXPECT_TRUE(fs::is_empty(root_ / "checkpoints"));
}

/// Removes a checkpoint, and all that can be with it, at the moment when a reader opens its first object.
class RemovingStore : public Store {
 public:
  RemovingStore(DirectoryStore& store, std::string id) : store_(store), id_(std::move(id)) {}
  const std::string& name() const override { return store_.name(); }
  Result<std::unique_ptr<CheckpointWriter>> begin() override { return store_.begin(); }
  Result<Listing> list() const override { return store_.list(); }
  Result<Summaries> summaries() const override { return store_.summaries(); }
  Result<Manifest> manifest(const std::string& id) const override { return store_.manifest(id); }
  Result<std::unique_ptr<ObjectReader>> open(const std::string& id, std::string_view object) const override {
    if (store_.manifest(id_).ok()) {
      EXPECT_TRUE(store_.remove(id_).ok() && store_.sweep().ok());
    }
    return store_.open(id, object);
  }
  Result<std::string> object_path(const std::string& id, std::string_view object) const override {
    return store_.object_path(id, object);
  }
  Result<std::string> read_disks(const std::string& id) const override { return store_.read_disks(id); }
  Result<void> change_disks(const std::string& id,
                            const std::function<Result<std::string>(const std::string&)>& change) override {
    return store_.change_disks(id, change);
  }
  Result<void> forget_disks(const std::string& id) override { return store_.forget_disks(id); }
  Result<DiskRecords> disk_records() const override { return store_.disk_records(); }
  Result<std::unique_ptr<DiskLock>> lock_disks() override { return store_.lock_disks(); }
  Result<Removal> remove(const std::string& id) override { return store_.remove(id); }
  Result<u64> sweep(Sweep what) override { return store_.sweep(what); }

 private:
  DirectoryStore& store_;
  std::string id_;
};

TEST_F(RetiredTest, ACheckpointThatIsRemovedWhileItIsOpenedIsNotDamagedButGone) {
  EXPECT_EQ(CheckpointReader::open(RemovingStore{*store_, kA}, kA).error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(CheckpointReader::open(RemovingStore{*store_, kC}, kC).error().kind(), ErrorKind::kNotFound);
  expect_whole(kD);
}

/// What stands in the first frame of A, which nobody needs when A is gone: zeros, or 'x' written by a test.
class TakenTest : public RetiredTest {
 protected:
  TakenTest() {
    remove(kA);
    sweep();
  }
  void SetUp() override {
    if (!can_punch()) GTEST_SKIP() << "the file system cannot make holes";
    ASSERT_EQ(first_byte(), 0);
    fill();
  }
  char first_byte() const { return read_file(folder(kA) / "memory")[kMemoryHeaderBytes]; }
  void fill() {
    std::string memory = read_file(folder(kA) / "memory");
    memory[kMemoryHeaderBytes] = 'x';
    write_file(folder(kA) / "memory", memory);
  }
};

TEST_F(TakenTest, NothingIsDoneTwice) {
  EXPECT_EQ(sweep(), 0u);
  EXPECT_EQ(first_byte(), 'x');
}

TEST_F(TakenTest, ANewDependentNeedsNoSecondLook) {
  commit_link("00000000000000e5", kD, {2});
  sweep();
  EXPECT_EQ(first_byte(), 'x');
}

TEST_F(TakenTest, ADependentThatIsGoneNeedsOne) {
  remove(kC);
  sweep();
  EXPECT_EQ(first_byte(), 0);
  EXPECT_EQ(read_file(folder(kA) / "retired.punched"), fmt::format("vmsieve-punched 1\n{}\n{}\n", kB, kD));
}

TEST_F(TakenTest, ARecordThatIsNoneIsWrittenAnew) {
  const std::string good = read_file(folder(kA) / "retired.punched");
  for (const std::string& bad :
       {std::string{}, std::string{"vmsieve-punched 1\n"}, std::string{"vmsieve-punched 2\n"} + kB + "\n",
        good.substr(0, good.size() - 1), good + "x", good + "\n", std::string(2 * kMiB, 'x')}) {
    write_file(folder(kA) / "retired.punched", bad);
    fill();
    EXPECT_EQ(sweep(), 0u);
    EXPECT_EQ(first_byte(), 0) << bad.substr(0, 100);
    EXPECT_EQ(read_file(folder(kA) / "retired.punched"), good);
  }
}

TEST_F(TakenTest, NothingIsTakenWhileADependentsIndexCannotBeRead) {
  fs::remove(folder(kA) / "retired.punched");
  const std::string memory = read_file(folder(kC) / "memory");
  write_file(folder(kC) / "memory", memory.substr(0, memory.size() - 1));
  EXPECT_EQ(sweep(), 0u);
  EXPECT_EQ(first_byte(), 'x');
  write_file(folder(kC) / "memory", memory);
  EXPECT_EQ(sweep(), 0u);
  EXPECT_EQ(first_byte(), 0);
}

TEST_F(TakenTest, NothingIsTakenNorRemovedWhileAManifestIsOfANewerVersion) {
  commit("0000000000000fff");
  write_file(folder("0000000000000fff") / "manifest", kNewerManifest);
  EXPECT_EQ(store_->remove(kC).error().kind(), ErrorKind::kBusy);
  for (const char* id : {kB, kC, kD}) fs::remove(folder(id) / "manifest");
  EXPECT_EQ(sweep(), 3u);
  EXPECT_EQ(first_byte(), 'x');
  remove("0000000000000fff");
  EXPECT_TRUE(fs::is_empty(root_ / "checkpoints"));
}

TEST_F(TakenTest, NothingIsTakenNorRemovedWhileAManifestIsDamaged) {
  const std::string manifest = read_file(folder(kC) / "manifest");
  write_file(folder(kC) / "manifest", "");
  EXPECT_THAT(remove(kB), ElementsAre(kD));
  remove(kD);
  sweep();
  EXPECT_EQ(first_byte(), 'x');
  // What C needs of A and B was kept, though nobody could tell.
  write_file(folder(kC) / "manifest", manifest);
  expect_whole(kC);
  write_file(folder(kC) / "manifest", "");
  remove(kC);
  EXPECT_TRUE(fs::is_empty(root_ / "checkpoints"));
}

TEST_F(RetiredTest, AFileSystemWithoutHolesIsNoError) {
  const TemporaryDirectory temporary;
  const TemporaryMount mount{temporary.path(), "", "ramfs"};
  if (!mount.mounted()) GTEST_SKIP() << "needs the right to mount";
  root_ = temporary.path() / "store";
  store_ = std::move(*DirectoryStore::open_path(root_.string(), true));
  if (can_punch()) GTEST_SKIP() << "ramfs has learnt to make holes";
  commit_family();
  remove(kA);
  EXPECT_EQ(sweep(), 0u);
  EXPECT_TRUE(fs::exists(folder(kA) / "retired.punched"));
  expect_whole(kD);
}

/// A checkpoint E is being written, with frames of C or as said.
class CommitOnChainTest : public ChainTest {
 protected:
  static constexpr const char* kE = "00000000000000e5";
  CommitOnChainTest() {
    commit_family();
    writer_ = std::move(*store_->begin_as(kE));
    manifest_ = *write_link(*writer_, kC, {0});
  }
  Error refusal() {
    const auto committed = writer_->commit(manifest_);
    EXPECT_FALSE(committed.ok());
    return committed.ok() ? Error{ErrorKind::kTimeout, "committed"} : committed.error();
  }
  std::unique_ptr<CheckpointWriter> writer_;
  Manifest manifest_;
};

TEST_F(CommitOnChainTest, AncestorsMayBeRetired) {
  remove(kA);
  remove(kB);
  sweep();
  ASSERT_TRUE(writer_->commit(manifest_).ok());
  remove(kC);
  sweep();
  expect_whole(kE);
}

TEST_F(CommitOnChainTest, TheParentMustNotHaveBeenRemoved) {
  remove(kC);
  EXPECT_EQ(refusal().kind(), ErrorKind::kNotFound);
  EXPECT_THAT(refusal().message(), HasSubstr("checkpoint 00000000000000c3, which it needs, is gone"));
}

TEST_F(CommitOnChainTest, TheParentMustNotHaveBeenRetired) {
  commit_link("0000000000000fff", kC, {});
  remove(kC);
  EXPECT_TRUE(fs::exists(folder(kC) / "retired"));
  EXPECT_EQ(refusal().kind(), ErrorKind::kNotFound);
  EXPECT_THAT(refusal().message(), HasSubstr("its parent 00000000000000c3 is gone"));
  writer_.reset();
  EXPECT_FALSE(fs::exists(folder(kE)));
}

TEST_F(CommitOnChainTest, EveryAncestorsMemoryMustBeThere) {
  remove(kA);
  fs::remove(folder(kA) / "memory");
  EXPECT_THAT(refusal().message(), HasSubstr("checkpoint 00000000000000a1, which it needs, is gone"));
}

TEST_F(CommitOnChainTest, AncestorsNeedAParent) {
  manifest_.parent = "";
  EXPECT_EQ(refusal().kind(), ErrorKind::kUsage);
}

TEST_F(CommitOnChainTest, TheParentMustNeedTheSameAncestors) {
  manifest_.ancestors.push_back(kD);
  EXPECT_EQ(refusal().kind(), ErrorKind::kUsage);
  EXPECT_THAT(refusal().message(), HasSubstr("needs checkpoint 00000000000000d4, which its parent"));
}

TEST_F(CommitOnChainTest, ADamagedParentIsNone) {
  write_file(folder(kC) / "manifest", "");
  EXPECT_EQ(refusal().kind(), ErrorKind::kDamaged);
}

}  // namespace
}  // namespace vmsieve
