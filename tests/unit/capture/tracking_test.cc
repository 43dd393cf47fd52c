// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/tracking.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <optional>
#include <thread>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/capture/writing_guest.h"
#include "vmsieve/base/runtime_folder.h"
#include "vmsieve/capture/memory_units.h"
#include "vmsieve/qemu/remote_userfaultfd.h"

namespace vmsieve::test {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;
using Order = WritingGuest::Order;

bool eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + 5s;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

constexpr u64 kPages = 1024;

std::string path_of(pid_t qemu) { return fmt::format("{}/tracked-{}", runtime_folder(), qemu); }

/// A process that stands for QEMU, tracked if `start()` was called.
class Holder : public testing::Test {
 protected:
  Holder() : guest_({.blocks = {{.pages = kPages}}, .writers = 1, .reserved_pages = kPages / 2}) {}
  ~Holder() override {
    if (tracking_ && tracking_->is_held()) {
      EXPECT_TRUE(tracking_->end());
    }
    guest_.kill();
    EXPECT_FALSE(fs::exists(path_of(qemu_)));
  }

  void SetUp() override {
    if (runtime_folder().empty()) GTEST_SKIP() << "no folder for what is tracked";
  }
  void start() {
    auto taken = take_userfaultfd(qemu_);
    ASSERT_TRUE(taken) << taken.error().message();
    auto made = WriteProtection::make(std::move(*taken), WriteProtection::Mode::kNote);
    if (!made && made.error().kind() == ErrorKind::kUnsupported) GTEST_SKIP() << made.error().message();
    ASSERT_TRUE(made) << made.error().message();
    ASSERT_TRUE(made->add(range_));
    ASSERT_TRUE(made->protect(range_));
    record_.blocks = tracked_blocks(guest_.layout());
    auto started = Tracking::start(std::move(*made), record_);
    ASSERT_TRUE(started) << started.error().message();
    tracking_.emplace(std::move(*started));
  }
  /// Are writes noted?
  bool is_noted() const {
    auto pagemap = Pagemap::open(qemu_);
    return pagemap && pagemap->written(range_.start, range_.end, Pagemap::Take::kNo).ok();
  }
  std::optional<Tracking> found() const {
    auto found = Tracking::find(qemu_);
    EXPECT_TRUE(found) << found.error().message();
    return found ? std::move(*found) : std::nullopt;
  }
  void kill_holder() const {
    ::kill(tracking_->holder(), SIGKILL);
    ::waitpid(tracking_->holder(), nullptr, 0);
  }

  WritingGuest guest_;
  const pid_t qemu_ = guest_.pid();
  const ByteRange range_ = MemoryUnits(guest_.layout()).block(0);
  TrackingRecord record_{
      .qemu = qemu_, .vm_name = "web", .store = "", .checkpoint = "", .why_none = "none yet", .blocks = {}};
  std::optional<Tracking> tracking_;
};

#define START_OR_RETURN() \
  start();                \
  if (!tracking_) return

TEST_F(Holder, IsNotThereBeforeItIsStarted) {
  EXPECT_FALSE(found());
  EXPECT_FALSE(is_noted());
}

TEST_F(Holder, IsFoundWithItsRecord) {
  START_OR_RETURN();
  EXPECT_TRUE(is_noted());
  EXPECT_TRUE(tracking_->is_held());
  const auto again = found();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->record(), record_);
  EXPECT_EQ(again->record().blocks.size(), 1U);
  EXPECT_EQ(again->holder(), tracking_->holder());
  EXPECT_TRUE(again->is_held());
}

TEST_F(Holder, IsFoundByAnotherProcess) {
  START_OR_RETURN();
  const pid_t other = ::fork();
  if (other == 0) {
    const auto it = Tracking::find(qemu_);
    ::_exit(it && *it && (*it)->is_held() && (*it)->holder() == tracking_->holder() ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(other, &status, 0), other);
  EXPECT_EQ(status, 0);
  // And nothing has changed by its having looked, and closed the file.
  EXPECT_TRUE(tracking_->is_held());
  EXPECT_TRUE(found());
}

TEST_F(Holder, KeepsWhatIsSetAndForgotten) {
  START_OR_RETURN();
  ASSERT_TRUE(tracking_->set_checkpoint("/stores/one", "0123456789abcdef"));
  EXPECT_EQ(found()->record(), tracking_->record());
  EXPECT_EQ(found()->record().checkpoint, "0123456789abcdef");
  EXPECT_EQ(found()->record().store, "/stores/one");
  EXPECT_EQ(found()->record().why_none, "");
  // Shorter than before: nothing of the longer one may be left.
  ASSERT_TRUE(found()->forget_checkpoint("why"));
  const auto forgotten = found();
  EXPECT_EQ(forgotten->record().checkpoint, "");
  EXPECT_EQ(forgotten->record().store, "");
  EXPECT_EQ(forgotten->record().why_none, "why");
  EXPECT_EQ(forgotten->record().blocks, record_.blocks);
}

TEST_F(Holder, EndedTheProtectionIsGone) {
  START_OR_RETURN();
  const pid_t holder = tracking_->holder();
  ASSERT_TRUE(tracking_->end());
  EXPECT_FALSE(tracking_->is_held());
  EXPECT_FALSE(found());
  EXPECT_FALSE(fs::exists(path_of(qemu_)));
  EXPECT_FALSE(fs::exists(fmt::format("/proc/{}", holder)));  // not even a zombie
  EXPECT_FALSE(is_noted());
  EXPECT_TRUE(guest_.goes_on());
  EXPECT_TRUE(guest_.does(Order::kWrite, kPages / 2, kPages / 2));
}

TEST_F(Holder, EndedTwiceIsNoError) {
  START_OR_RETURN();
  auto other = found();
  ASSERT_TRUE(other);
  ASSERT_TRUE(tracking_->end());
  EXPECT_TRUE(other->end());
  EXPECT_TRUE(tracking_->end());
}

TEST_F(Holder, CanBeStartedAnewAfterItsEnd) {
  START_OR_RETURN();
  ASSERT_TRUE(tracking_->end());
  START_OR_RETURN();
  EXPECT_TRUE(is_noted());
  EXPECT_TRUE(found());
}

TEST_F(Holder, KilledTheProtectionIsGone) {
  START_OR_RETURN();
  ASSERT_TRUE(tracking_->set_checkpoint("/stores/one", "0123456789abcdef"));
  kill_holder();
  EXPECT_FALSE(tracking_->is_held());
  EXPECT_FALSE(found());
  EXPECT_TRUE(eventually([&] { return !is_noted(); }));
  EXPECT_TRUE(guest_.goes_on());
  START_OR_RETURN();
  EXPECT_TRUE(found());
  EXPECT_EQ(found()->record().checkpoint, "");
}

TEST_F(Holder, EndsWithQemu) {
  START_OR_RETURN();
  const pid_t holder = tracking_->holder();
  guest_.kill();
  EXPECT_TRUE(eventually([&] { return ::waitpid(holder, nullptr, WNOHANG) == holder; }));
  EXPECT_FALSE(fs::exists(path_of(qemu_)));
  EXPECT_FALSE(tracking_->is_held());
  EXPECT_FALSE(found());
}

TEST_F(Holder, EndsWithAQemuThatNobodyWaitsFor) {
  START_OR_RETURN();
  const pid_t holder = tracking_->holder();
  ::kill(qemu_, SIGKILL);  // stays a zombie
  EXPECT_TRUE(eventually([&] { return ::waitpid(holder, nullptr, WNOHANG) == holder; }));
  EXPECT_FALSE(fs::exists(path_of(qemu_)));
}

TEST_F(Holder, OutlivesTheSaverAndItsSignals) {
  // Another process starts it, as `vmsieve save` does, and ends.
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const pid_t saver = ::fork();
  if (saver == 0) {
    ::setpgid(0, 0);
    start();
    const pid_t holder = tracking_ ? tracking_->holder() : 0;
    (void)!::write(ends[1], &holder, sizeof holder);
    for (;;) ::pause();
  }
  ::close(ends[1]);
  pid_t holder = 0;
  ASSERT_EQ(::read(ends[0], &holder, sizeof holder), static_cast<ssize_t>(sizeof holder));
  ::close(ends[0]);
  ::kill(-saver, SIGINT);
  ::kill(-saver, SIGKILL);
  ASSERT_EQ(::waitpid(saver, nullptr, 0), saver);
  if (holder == 0) GTEST_SKIP() << "writes cannot be noted here";
  auto it = found();
  ASSERT_TRUE(it);
  EXPECT_EQ(it->holder(), holder);
  for (const int signal : {SIGINT, SIGHUP, SIGPIPE, SIGALRM, SIGUSR1}) ::kill(holder, signal);
  std::this_thread::sleep_for(20ms);
  EXPECT_TRUE(it->is_held());
  EXPECT_TRUE(is_noted());
  EXPECT_TRUE(it->end());
  EXPECT_FALSE(is_noted());
}

TEST_F(Holder, KeepsNothingOfItsParent) {
  const UniqueFd inherited{::open("/dev/null", O_RDONLY)};
  START_OR_RETURN();
  const std::string folder = fmt::format("/proc/{}", tracking_->holder());
  std::vector<std::string> kept;
  for (const auto& entry : fs::directory_iterator(folder + "/fd")) kept.push_back(fs::read_symlink(entry));
  EXPECT_THAT(
      kept, testing::UnorderedElementsAre("anon_inode:[userfaultfd]", "anon_inode:[pidfd]", path_of(qemu_)));
  EXPECT_EQ(fs::read_symlink(folder + "/cwd"), "/");
  EXPECT_EQ(::getsid(tracking_->holder()), tracking_->holder());
  const auto name = read_text_file(folder + "/comm", 64);
  EXPECT_EQ(name ? *name : "", "vmsieve-holder\n");
}

TEST_F(Holder, IsTheOnlyOneToKeepTheProtection) {
  START_OR_RETURN();
  for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    EXPECT_EQ(fs::read_symlink(entry, gone).string().find("userfaultfd"), std::string::npos);
  }
}

TEST_F(Holder, ItsFileIsForItsUserAlone) {
  START_OR_RETURN();
  struct stat info {};
  ASSERT_EQ(::lstat(path_of(qemu_).c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600U);
  EXPECT_EQ(info.st_uid, ::geteuid());
}

// ---- records that are not whole ----

/// Damages the file of a tracking that has a checkpoint, and looks.
class Damage : public Holder {
 protected:
  void expect_no_checkpoint(const std::string& text) {
    const UniqueFd file{::open(path_of(qemu_).c_str(), O_RDWR | O_CLOEXEC)};
    ASSERT_EQ(::ftruncate(file.get(), 0), 0);
    ASSERT_TRUE(pwrite_all(file.get(), std::as_bytes(std::span{text}), 0, "record"));
    const auto it = found();
    ASSERT_TRUE(it);
    EXPECT_EQ(it->record().checkpoint, "");
    EXPECT_EQ(it->record().store, "");
    EXPECT_NE(it->record().why_none, "");
    EXPECT_TRUE(it->record().blocks.empty());
    EXPECT_EQ(it->record().qemu, qemu_);
    EXPECT_TRUE(it->is_held());
  }
};

TEST_F(Damage, NoCheckpointIsTakenFromARecordThatIsNotWhole) {
  START_OR_RETURN();
  ASSERT_TRUE(tracking_->set_checkpoint("/stores/one", "0123456789abcdef"));
  const auto text = read_text_file(path_of(qemu_), kMiB);
  ASSERT_TRUE(text);
  for (std::size_t bytes = 0; bytes < text->size(); bytes += 5) expect_no_checkpoint(text->substr(0, bytes));
  for (std::size_t at = 0; at < text->size(); at += 3) {
    std::string flipped = *text;
    flipped[at] = static_cast<char>(flipped[at] ^ 1);
    expect_no_checkpoint(flipped);
  }
  // Whole, but another VM's: its process id was given out again.
  TrackingRecord other = tracking_->record();
  other.qemu = qemu_ + 1;
  expect_no_checkpoint(encode_tracking_record(other));
  // It can be ended, and started anew.
  EXPECT_TRUE(found()->end());
  EXPECT_FALSE(is_noted());
}

TEST_F(Holder, AFileThatNobodyHoldsIsNoTracking) {
  record_.checkpoint = "0123456789abcdef";
  for (const std::string& text : {encode_tracking_record(record_), std::string()}) {
    {
      auto file = open_file(path_of(qemu_), O_RDWR | O_CREAT | O_EXCL, 0600);
      ASSERT_TRUE(file) << file.error().message();
      ASSERT_TRUE(write_all(file->get(), std::as_bytes(std::span{text}), "record"));
    }
    EXPECT_FALSE(found());
    fs::remove(path_of(qemu_));
  }
}

TEST_F(Holder, AFileThatWasLeftDoesNotMatterToTheNext) {
  { ASSERT_TRUE(open_file(path_of(qemu_), O_RDWR | O_CREAT | O_EXCL, 0600)); }
  START_OR_RETURN();
  EXPECT_EQ(found()->record(), record_);
}

TEST_F(Holder, ALinkInItsPlaceIsNotFollowed) {
  const std::string target = fmt::format("{}/tracked-target-{}", fs::temp_directory_path().string(), qemu_);
  { ASSERT_TRUE(open_file(target, O_RDWR | O_CREAT | O_EXCL, 0600)); }
  fs::create_symlink(target, path_of(qemu_));
  EXPECT_FALSE(Tracking::find(qemu_));
  START_OR_RETURN();
  EXPECT_EQ(fs::file_size(target), 0U);
  fs::remove(target);
}

// One is started while others look: a look must not take its file away.
TEST_F(Holder, IsNotLostWhenOthersLookWhileItIsStarted) {
  std::atomic<bool> done = false;
  std::thread looker([&] {
    while (!done) {
      (void)Tracking::find(qemu_);
      std::this_thread::sleep_for(100us);
    }
  });
  for (int i = 0; i < 8 && !testing::Test::HasFailure(); ++i) {
    start();
    if (!tracking_) break;
    EXPECT_TRUE(fs::exists(path_of(qemu_)));
    EXPECT_TRUE(found());
    EXPECT_TRUE(tracking_->end());
    tracking_.reset();
  }
  done = true;
  looker.join();
}

// ---- its size ----

u64 kib_of(pid_t pid, std::string_view field) {
  const auto status = read_text_file(fmt::format("/proc/{}/status", pid), kMiB);
  const std::size_t at = status ? status->find(field) : std::string::npos;
  return at == std::string::npos ? 0 : std::strtoull(status->c_str() + at + field.size(), nullptr, 10);
}

TEST_F(Holder, HasNoMemoryOfItsOwnToSpeakOf) {
  START_OR_RETURN();
  // What it shares with its parent (this test) counts in VmRSS, but goes with the parent, or is copied by it.
  RecordProperty("VmRSS", std::to_string(kib_of(tracking_->holder(), "VmRSS:")));
  RecordProperty("RssAnon", std::to_string(kib_of(tracking_->holder(), "RssAnon:")));
  EXPECT_GT(kib_of(tracking_->holder(), "VmRSS:"), 0U);
}

}  // namespace
}  // namespace vmsieve::test
