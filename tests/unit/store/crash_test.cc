// SPDX-License-Identifier: Apache-2.0
// Every state of docs/format.md, "States that a reader may find", and writers that live or die.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "unit/store/store_fixture.h"

namespace vmsieve {
namespace {

using ::testing::IsEmpty;

/// One line of the table: what stands in the folder, what list() and sweep() must make of it.
struct State {
  const char* name;
  std::vector<const char*> files;  ///< of: writing, memory, device, manifest.new, manifest; "~NAME": cut off
  bool exists;                     ///< a reader sees the checkpoint
  u64 swept;                       ///< what the sweep counts
};

class CrashState : public StoreTest, public ::testing::WithParamInterface<State> {};

INSTANTIATE_TEST_SUITE_P(
    Store, CrashState,
    ::testing::Values(State{"EmptyFolder", {}, false, 1}, State{"LockOnly", {"writing"}, false, 1},
                      State{"PartOfMemory", {"writing", "~memory"}, false, 1},
                      State{"AllObjects", {"writing", "memory", "device"}, false, 1},
                      State{
                          "PartOfTheNewManifest", {"writing", "memory", "device", "~manifest.new"}, false, 1},
                      State{"WholeNewManifest", {"writing", "memory", "device", "manifest.new"}, false, 1},
                      State{"ManifestAndLock", {"writing", "memory", "device", "manifest"}, true, 1},
                      State{"Whole", {"memory", "device", "manifest"}, true, 0},
                      State{"RemovedManifest", {"memory", "device"}, false, 1},
                      State{"HalfRemoved", {"device"}, false, 1},
                      State{"LockLostInAPowerCut", {"~memory", "~device", "~manifest.new"}, false, 1}),
    [](const auto& parameter) { return parameter.param.name; });

TEST_P(CrashState, IsSeenAndSweptAsTheFormatSays) {
  commit();
  commit(kOther);
  const fs::path whole = directory_.path() / "whole";
  fs::rename(folder(), whole);
  fs::copy_file(whole / "manifest", whole / "manifest.new");
  write_file(whole / "writing", "");
  fs::create_directory(folder());
  for (std::string name : GetParam().files) {
    const bool cut = name[0] == '~';
    if (cut) name.erase(0, 1);
    fs::copy_file(whole / name, folder() / name);
    if (cut) fs::resize_file(folder() / name, fs::file_size(folder() / name) / 2);
  }

  const auto seen = [this] {
    const auto listing = store_->list();
    EXPECT_TRUE(listing.ok());
    EXPECT_THAT(listing->damaged.size(), 0u);
    return listing->checkpoints.size() == 2;
  };
  EXPECT_EQ(seen(), GetParam().exists);
  EXPECT_EQ(store_->manifest(kId).ok(), GetParam().exists);
  // Who only reads leaves alone what might be somebody's copy under way.
  const std::vector<std::string> files(GetParam().files.begin(), GetParam().files.end());
  const bool safe = GetParam().exists || std::find(files.begin(), files.end(), "writing") != files.end();
  if (!safe) {
    EXPECT_EQ(*store_->sweep(Sweep::kSafe), 0u);
    EXPECT_EQ(std::distance(fs::directory_iterator(folder()), {}), files.size());
  }
  const auto swept = store_->sweep(safe ? Sweep::kSafe : Sweep::kAll);
  ASSERT_TRUE(swept.ok()) << swept.error().message();
  EXPECT_EQ(*swept, GetParam().swept);
  EXPECT_EQ(fs::exists(folder()), GetParam().exists);
  EXPECT_EQ(seen(), GetParam().exists);
  if (GetParam().exists) {
    EXPECT_EQ(fault_of(*store_, kId), "");
    EXPECT_EQ(std::distance(fs::directory_iterator(folder()), {}), 3);
  }
  EXPECT_EQ(fault_of(*store_, kOther), "");
  EXPECT_EQ(*store_->sweep(), 0u);
}

/// The same for a checkpoint that was removed while kOther needed it.
struct RetiredState {
  const char* name;
  std::vector<const char*> files;
  bool needed;  ///< kOther is still there
  bool stays;   ///< after a sweep
  u64 swept;
};

class RetiredCrashState : public StoreTest, public ::testing::WithParamInterface<RetiredState> {};

INSTANTIATE_TEST_SUITE_P(
    Store, RetiredCrashState,
    ::testing::Values(
        RetiredState{"RenamedManifest", {"memory", "device", "retired"}, true, true, 1},
        RetiredState{"RenamedManifestAndLock", {"memory", "device", "retired", "writing"}, true, true, 1},
        RetiredState{"RenamedManifestOfTwo", {"memory", "retired", "manifest.new"}, true, true, 1},
        RetiredState{"Whole", {"memory", "retired"}, true, true, 0},
        RetiredState{"SomeHoles", {"punched memory", "retired"}, true, true, 0},
        RetiredState{
            "HolesAndPartOfTheRecord", {"punched memory", "retired", "~retired.punched.new"}, true, true, 1},
        RetiredState{"HolesAndARecord", {"punched memory", "retired", "retired.punched"}, true, true, 0},
        RetiredState{"RecordCutOff", {"punched memory", "retired", "~retired.punched"}, true, true, 0},
        RetiredState{"DependentGone", {"punched memory", "retired", "retired.punched"}, false, false, 1},
        RetiredState{"DependentGoneRenamedOnly", {"memory", "device", "retired"}, false, false, 2},
        RetiredState{"RemovedRetired", {"punched memory", "retired.punched"}, false, false, 1},
        RetiredState{"HalfRemoved", {"retired.punched"}, false, false, 1}),
    [](const auto& parameter) { return parameter.param.name; });

TEST_P(RetiredCrashState, IsSeenAndSweptAsTheFormatSays) {
  commit();
  const Frame frame = (*CheckpointReader::open(*store_, kId))->index().frames[2];
  ASSERT_TRUE(commit_sample(*store_, {.id = kOther, .ancestor = kId, .ancestor_frame = frame}).ok());
  const fs::path whole = directory_.path() / "whole";
  fs::rename(folder(), whole);
  fs::copy_file(whole / "manifest", whole / "retired");
  fs::copy_file(whole / "manifest", whole / "manifest.new");
  write_file(whole / "writing", "");
  const std::string record = fmt::format("vmsieve-punched 1\n{}\n", kOther);
  write_file(whole / "retired.punched", record);
  write_file(whole / "retired.punched.new", record);
  std::string holes = read_file(whole / "memory");
  std::fill_n(holes.begin() + kMemoryHeaderBytes, kPageSize, '\0');
  fs::create_directory(folder());
  for (std::string name : GetParam().files) {
    const bool cut = name[0] == '~';
    if (cut) name.erase(0, 1);
    if (name == "punched memory") {
      write_file(folder() / "memory", holes);
    } else {
      fs::copy_file(whole / name, folder() / name);
    }
    if (cut) fs::resize_file(folder() / name, fs::file_size(folder() / name) / 2);
  }
  if (!GetParam().needed) fs::remove_all(folder(kOther));

  const auto expect_not_there = [this] {
    const auto listing = store_->list();
    ASSERT_TRUE(listing.ok());
    EXPECT_EQ(listing->damaged.size(), 0u);
    EXPECT_EQ(listing->checkpoints.size(), GetParam().needed ? 1u : 0u);
    EXPECT_EQ(store_->manifest(kId).error().kind(), ErrorKind::kNotFound);
    EXPECT_EQ(store_->remove(kId).error().kind(), ErrorKind::kNotFound);
    if (GetParam().needed) {
      EXPECT_EQ(fault_of(*store_, kOther), "");
    }
  };
  expect_not_there();
  const auto swept = store_->sweep();
  ASSERT_TRUE(swept.ok()) << swept.error().message();
  EXPECT_EQ(*swept, GetParam().swept);
  expect_not_there();
  ASSERT_EQ(fs::exists(folder()), GetParam().stays);
  if (GetParam().stays) {
    EXPECT_EQ(read_file(folder() / "retired.punched"), record);
    EXPECT_EQ(std::distance(fs::directory_iterator(folder()), {}), 3);
    ASSERT_TRUE(store_->remove(kOther).ok());
  }
  EXPECT_TRUE(fs::is_empty(root_ / "checkpoints"));
  EXPECT_EQ(*store_->sweep(), 0u);
}

/// What a power cut leaves when the rename of the manifest was not durable yet.
TEST_F(StoreTest, AManifestBesideARetiredOneIsACheckpoint) {
  commit();
  fs::copy_file(folder() / "manifest", folder() / "retired");
  EXPECT_EQ(*store_->sweep(), 0u);
  EXPECT_EQ(fault_of(*store_, kId), "");
  EXPECT_EQ(store_->list()->checkpoints.size(), 1u);
  EXPECT_TRUE(store_->remove(kId).ok());
  EXPECT_FALSE(fs::exists(folder()));
}

TEST_F(StoreTest, SweepLeavesTheWorkOfALiveWriterOfThisProcess) {
  auto writer = store_->begin_as(kId);
  const auto manifest = write_sample(**writer, {.id = kId});
  EXPECT_EQ(*store_->sweep(), 0u);
  EXPECT_TRUE((*writer)->commit(*manifest).ok());
  EXPECT_EQ(fault_of(*store_, kId), "");
}

/// A child process that has begun a checkpoint, written part of it, and waits to be killed.
class OtherProcess {
 public:
  OtherProcess(const std::string& root, const std::string& id) {
    int ready[2];
    if (::pipe(ready) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      auto store = DirectoryStore::open_path(root, false);
      auto writer = (*store)->begin_as(id);
      auto object = (*writer)->create("memory");
      const char good = object.ok() ? 'y' : 'n';
      (void)!::write(ready[1], &good, 1);
      for (;;) ::pause();
    }
    ::close(ready[1]);
    char answer = 0;
    ready_ = ::read(ready[0], &answer, 1) == 1 && answer == 'y';
    ::close(ready[0]);
  }
  ~OtherProcess() { kill(); }
  bool ready() const { return ready_; }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
  bool ready_ = false;
};

TEST_F(StoreTest, SweepTellsALiveWriterFromADeadOne) {
  OtherProcess writer{root_.string(), kId};
  ASSERT_TRUE(writer.ready());
  EXPECT_EQ(*store_->sweep(), 0u);
  EXPECT_TRUE(fs::exists(folder() / "memory"));
  writer.kill();
  EXPECT_THAT(store_->list()->checkpoints, IsEmpty());
  EXPECT_EQ(*store_->sweep(), 1u);
  EXPECT_FALSE(fs::exists(folder()));
}

TEST_F(StoreTest, SweepGoesOnPastAFolderThatItCannotRemove) {
  fs::create_directories(folder() / "nested");
  fs::create_directory(folder(kOther));
  const auto swept = store_->sweep();
  ASSERT_FALSE(swept.ok());
  EXPECT_THAT(swept.error().message(), ::testing::HasSubstr((folder() / "nested").string()));
  EXPECT_TRUE(fs::exists(folder() / "nested"));
  EXPECT_FALSE(fs::exists(folder(kOther)));
}

}  // namespace
}  // namespace vmsieve
