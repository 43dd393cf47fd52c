// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/page_server.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmsieve/image/frame_codec.h"
#include "vmsieve/store/directory_store.h"
#include "vmsieve/store/memory_writer.h"

namespace vmsieve {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr u64 kPages = 4096;
constexpr u64 kFramePages = 64;
constexpr const char* kId = "00000000000000a1";

/// Every fourth stretch of 64 pages is zeros, and one of the others one byte.
u64 word_of(u64 page) {
  const u64 stretch = page / kFramePages;
  if (stretch % 4 == 3) return 0;
  if (stretch % 8 == 2) return 0x5a5a5a5a5a5a5a5a;
  return page * 0x9e3779b97f4a7c15 | 1;
}

/// What the process in QEMU's place and its test both see.
struct Board {
  std::atomic<u64> checked{0};  ///< pages
  std::atomic<u64> wrong{0};
  std::atomic<bool> go{false};
  std::atomic<bool> done{false};
};

/// A process with memory that is still to come: reads every page of it in a random order.
class Reader {
 public:
  explicit Reader(bool shared) {
    if (shared) {
      fd_ = UniqueFd{::memfd_create("test", MFD_CLOEXEC)};
      if (::ftruncate(fd_.get(), kPages * kPageSize) != 0) std::abort();
    }
    memory_ = ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE,
                     shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd_.get(), 0);
    void* board = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED || board == MAP_FAILED) std::abort();
    board_ = new (board) Board;
    pid_ = ::fork();
    if (pid_ == 0) live();
  }
  ~Reader() {
    ::kill(pid_, SIGKILL);
    (void)wait();
    ::munmap(memory_, kPages * kPageSize);
    ::munmap(board_, sizeof(Board));
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  pid_t pid() const { return pid_; }
  Board& board() const { return *board_; }
  RamLayout layout() const {
    RamLayout layout;
    layout.blocks = {{.name = "ram",
                      .used_bytes = kPages * kPageSize,
                      .host = HostVirtual{reinterpret_cast<u64>(memory_)},
                      .guest_ram = true}};
    return layout;
  }
  bool is_done() const {
    for (int i = 0; i < 10000 && !board_->done; ++i) std::this_thread::sleep_for(1ms);
    return board_->done;
  }
  /// The signal that ended it, within five seconds.
  int end_signal() {
    for (int i = 0; i < 5000 && status_ < 0; ++i) {
      int status = 0;
      if (::waitpid(pid_, &status, WNOHANG) == pid_) status_ = status;
      std::this_thread::sleep_for(1ms);
    }
    return status_ >= 0 && WIFSIGNALED(status_) ? WTERMSIG(status_) : 0;
  }

 private:
  int wait() {
    if (status_ < 0) ::waitpid(pid_, &status_, 0);
    return status_;
  }
  [[noreturn]] void live() {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (!board_->go) ::usleep(100);
    const auto* words = static_cast<const volatile u64*>(memory_);
    constexpr u64 kWords = kPageSize / sizeof(u64);
    // Coprime to kPages: every page once.
    for (u64 i = 0; i < kPages; ++i) {
      const u64 page = i * 1237 % kPages;
      const bool right =
          words[page * kWords] == word_of(page) && words[page * kWords + kWords - 1] == word_of(page);
      if (!right) ++board_->wrong;
      ++board_->checked;
    }
    board_->done = true;
    for (;;) ::pause();
  }

  UniqueFd fd_;
  void* memory_ = nullptr;
  Board* board_ = nullptr;
  pid_t pid_ = -1;
  int status_ = -1;
};

class PageServerTest : public testing::TestWithParam<bool> {
 protected:
  PageServerTest() : reader_(GetParam()) {
    std::string path = testing::TempDir() + "/page_server_XXXXXX";
    if (::mkdtemp(path.data()) == nullptr) std::abort();
    folder_ = path;
    std::ofstream(log_path()) << "QEMU said this\n";
    write_checkpoint();
  }
  ~PageServerTest() override { fs::remove_all(folder_); }

  std::string log_path() const { return folder_ / "log"; }
  std::string log() const {
    std::ostringstream text;
    text << std::ifstream(log_path()).rdbuf();
    return text.str();
  }

  void write_checkpoint() {
    auto store = DirectoryStore::open_path(folder_ / "store", true);
    ASSERT_TRUE(store) << store.error().message();
    store_ = std::move(*store);
    auto writer = store_->begin_as(kId);
    ASSERT_TRUE(writer);
    auto object = (*writer)->create("memory");
    ASSERT_TRUE(object);
    MemoryObjectWriter memory{**object, kId};
    Manifest manifest;
    BlockIndex ram{.name = "ram", .used_bytes = kPages * kPageSize, .runs = {}};
    FrameEncoder encoder{{Codec::kLz4, 1}};
    for (u64 page = 0; page < kPages; page += kFramePages) {
      PageRun run{.first_page = page, .pages = kFramePages};
      const u64 word = word_of(page);
      if (word == 0) {
        run.kind = RunKind::kFree;
        manifest.pages.free += kFramePages;
      } else if (word == 0x5a5a5a5a5a5a5a5a) {
        run.kind = RunKind::kFill;
        run.fill = 0x5a;
        manifest.pages.fill += kFramePages;
      } else {
        std::vector<u64> words;
        for (u64 i = page; i < page + kFramePages; ++i) words.insert(words.end(), kPageSize / 8, word_of(i));
        std::vector<std::byte> stored;
        const Frame frame = encoder.encode(std::as_bytes(std::span{words}), stored);
        const auto number = memory.add_frame(frame, stored);
        ASSERT_TRUE(number);
        run.kind = RunKind::kData;
        run.frame = *number;
        manifest.pages.saved += kFramePages;
      }
      if (!ram.runs.empty() && run.kind != RunKind::kData && ram.runs.back().kind == run.kind) {
        ram.runs.back().pages += run.pages;
      } else {
        ram.runs.push_back(run);
      }
    }
    auto record = memory.finish({ram});
    ASSERT_TRUE(record) << record.error().message();
    auto device = (*writer)->create("device");
    ASSERT_TRUE(device && (*device)->append(std::as_bytes(std::span{"QEVM", 4})) && (*device)->finish());
    manifest.id = kId;
    manifest.created = "2026-01-31T12:34:56.789Z";
    manifest.mode = "paused";
    manifest.vm_name = "web";
    manifest.compression = "lz4";
    manifest.blocks = {
        {.name = ram.name, .used_bytes = ram.used_bytes, .max_bytes = ram.used_bytes, .guest_ram = true}};
    manifest.mappings = {{.address = 0, .bytes = ram.used_bytes, .block = 0, .block_offset = 0}};
    manifest.guest_bytes = ram.used_bytes;
    manifest.pages.total = kPages;
    manifest.stored_bytes = record->bytes + 4;
    manifest.objects = {
        *record, {.name = "device", .bytes = 4, .checksum = checksum(std::as_bytes(std::span{"QEVM", 4}))}};
    const auto committed = (*writer)->commit(manifest);
    ASSERT_TRUE(committed) << committed.error().message();
  }

  /// The last frame of the memory object gets other bytes.
  void damage() {
    const auto opened = CheckpointReader::open(*store_, kId);
    ASSERT_TRUE(opened);
    const Frame frame = (*opened)->index().frames.back();
    std::fstream file(folder_ / "store" / "checkpoints" / kId / "memory",
                      std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(frame.offset + frame.stored_bytes / 2));
    file.write("damaged!", 8);
    ASSERT_TRUE(file.good());
  }

  Result<std::unique_ptr<PageServer>> start(const PageServer::Options& options = {.threads = 2}) {
    VMSIEVE_ASSIGN(auto opened, CheckpointReader::open(*store_, kId));
    std::shared_ptr<const CheckpointReader> reader = std::move(opened);
    MissingPlan plan(reader->index(), {true}, reader_.layout());
    return PageServer::start(std::move(reader), std::move(plan), {reader_.pid(), log_path()}, options);
  }

  Reader reader_;
  fs::path folder_;
  std::unique_ptr<DirectoryStore> store_;
};

INSTANTIATE_TEST_SUITE_P(Memory, PageServerTest, testing::Bool(), [](const auto& instance) {
  return instance.param ? std::string("shared") : std::string("private");
});

TEST_P(PageServerTest, EveryPageIsWhatWasSaved) {
  auto server = start();
  ASSERT_TRUE(server) << server.error().message();
  reader_.board().go = true;
  const auto filled = (*server)->wait();
  ASSERT_TRUE(filled) << filled.error().message();
  EXPECT_TRUE(reader_.is_done());
  EXPECT_EQ(reader_.board().checked, kPages);
  EXPECT_EQ(reader_.board().wrong, 0U);
  EXPECT_EQ((*server)->figures().pages, kPages / 4 * 3);
  server->reset();
  EXPECT_EQ(log(), "QEMU said this\n");
  EXPECT_EQ(::kill(reader_.pid(), 0), 0);
  // Nothing of ours is left in it.
  for (const auto& entry : fs::directory_iterator(fmt::format("/proc/{}/fd", reader_.pid())))
    EXPECT_THAT(fs::read_symlink(entry).string(), testing::Not(HasSubstr("userfaultfd")));
}

TEST_P(PageServerTest, PagesThatNobodyTouchesComeToo) {
  auto server = start();
  ASSERT_TRUE(server) << server.error().message();
  const auto filled = (*server)->wait();
  ASSERT_TRUE(filled) << filled.error().message();
  reader_.board().go = true;
  EXPECT_TRUE(reader_.is_done());
  EXPECT_EQ(reader_.board().wrong, 0U);
}

/// The frames in the order in which the process reads them.
WorkingSet in_reading_order() {
  std::map<u64, u64> frames;  // by the stretch's number
  for (u64 stretch = 0; stretch < kPages / kFramePages; ++stretch)
    if (const u64 word = word_of(stretch * kFramePages); word != 0 && word != 0x5a5a5a5a5a5a5a5a)
      frames.emplace(stretch, frames.size());
  WorkingSet order;
  std::set<u64> seen;
  for (u64 i = 0; i < kPages; ++i) {
    const u64 stretch = i * 1237 % kPages / kFramePages;
    if (frames.contains(stretch) && seen.insert(stretch).second) order.push_back(frames.at(stretch));
  }
  return order;
}

TEST_P(PageServerTest, WhatIsWantedFirstIsNotedAndComesFirstTheNextTime) {
  WorkingSet noted;
  {
    auto server = start({.threads = 2, .record = true});
    ASSERT_TRUE(server) << server.error().message();
    reader_.board().go = true;
    const auto filled = (*server)->wait();
    ASSERT_TRUE(filled) << filled.error().message();
    noted = (*server)->working_set();
    EXPECT_EQ((*server)->figures().first_jobs, 0U);
  }
  // Nothing else came in while the process read, so all that it read was waited for.
  EXPECT_EQ(noted, in_reading_order());
  EXPECT_EQ(reader_.board().wrong, 0U);

  Reader again(GetParam());
  auto opened = CheckpointReader::open(*store_, kId);
  ASSERT_TRUE(opened);
  std::shared_ptr<const CheckpointReader> reader = std::move(*opened);
  MissingPlan plan(reader->index(), {true}, again.layout());
  auto server = PageServer::start(std::move(reader), std::move(plan), {again.pid(), log_path()},
                                  {.threads = 2, .first = noted});
  ASSERT_TRUE(server) << server.error().message();
  ASSERT_TRUE((*server)->wait());
  EXPECT_EQ((*server)->figures().first_jobs, noted.size());
  EXPECT_EQ((*server)->figures().faults, 0U);
  EXPECT_TRUE((*server)->working_set().empty());
  again.board().go = true;
  EXPECT_TRUE(again.is_done());
  EXPECT_EQ(again.board().wrong, 0U);
}

TEST_P(PageServerTest, ADamagedFrameEndsTheProcess) {
  damage();
  auto server = start();
  ASSERT_TRUE(server) << server.error().message();
  reader_.board().go = true;
  const auto filled = (*server)->wait();
  ASSERT_FALSE(filled);
  EXPECT_EQ(filled.error().kind(), ErrorKind::kDamaged);
  EXPECT_EQ(reader_.end_signal(), SIGKILL);
  EXPECT_EQ(reader_.board().wrong, 0U);
  EXPECT_THAT(log(), HasSubstr("cannot be brought in, so it was ended"));
}

TEST_P(PageServerTest, ItsEndBeforeAllIsThereEndsTheProcess) {
  auto server = start();
  ASSERT_TRUE(server) << server.error().message();
  server->reset();
  const bool ended = reader_.end_signal() == SIGKILL;
  // Unless it was that fast.
  if (!ended) {
    reader_.board().go = true;
    EXPECT_TRUE(reader_.is_done());
  }
  EXPECT_EQ(reader_.board().wrong, 0U);
}

TEST_P(PageServerTest, WhenItIsKilledTheProcessIsEndedAndItsLogSaysSo) {
  std::mt19937 random{std::random_device{}()};
  const pid_t serving = ::fork();
  if (serving == 0) {
    auto server = start({.threads = 1});
    if (!server) ::_exit(1);
    reader_.board().go = true;
    ::usleep(static_cast<useconds_t>(std::uniform_int_distribution<>(0, 500)(random)));
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(serving, &status, 0), serving);
  ASSERT_TRUE(WIFSIGNALED(status)) << "the server did not start";
  if (reader_.end_signal() == SIGKILL) {
    EXPECT_THAT(log(), HasSubstr("has died before all was there"));
  } else {
    EXPECT_TRUE(reader_.is_done());  // all was there before
  }
  EXPECT_EQ(reader_.board().wrong, 0U);
}

TEST_P(PageServerTest, AProcessThatEndsByItselfHasVanished) {
  auto server = start();
  ASSERT_TRUE(server) << server.error().message();
  ::kill(reader_.pid(), SIGKILL);
  const auto filled = (*server)->wait();
  if (filled.ok()) {
    EXPECT_EQ((*server)->figures().pages, kPages / 4 * 3);  // all was there before
  } else {
    EXPECT_EQ(filled.error().kind(), ErrorKind::kVanished);
  }
  server->reset();
  EXPECT_EQ(log(), "QEMU said this\n");
}

TEST_P(PageServerTest, WhereItCannotStartTheProcessIsLeftAlone) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t holder = ::fork();
  if (holder == 0) {
    const auto lock = VmLock::take_for_fill(reader_.pid());
    (void)!::write(ready[1], "r", 1);
    for (;;) ::pause();
  }
  char word = 0;
  ASSERT_EQ(::read(ready[0], &word, 1), 1);
  {
    const auto server = start();
    ASSERT_FALSE(server);
    EXPECT_EQ(server.error().kind(), ErrorKind::kBusy);
    EXPECT_THAT(server.error().message(), HasSubstr(fmt::format("process {}", holder)));
    const auto waited = VmLock::wait_for_fill(reader_.pid(), 50ms);
    ASSERT_FALSE(waited);
    EXPECT_EQ(waited.error().kind(), ErrorKind::kBusy);
  }
  ::kill(holder, SIGKILL);
  ASSERT_EQ(::waitpid(holder, nullptr, 0), holder);
  ::close(ready[0]);
  ::close(ready[1]);
  EXPECT_TRUE(VmLock::wait_for_fill(reader_.pid(), 50ms));
  EXPECT_EQ(::kill(reader_.pid(), 0), 0);
  EXPECT_EQ(log(), "QEMU said this\n");
  auto server = start();
  ASSERT_TRUE(server) << server.error().message();
  reader_.board().go = true;
  EXPECT_TRUE((*server)->wait());
  EXPECT_TRUE(reader_.is_done());
  EXPECT_EQ(reader_.board().wrong, 0U);
}

}  // namespace
}  // namespace vmsieve
