// SPDX-License-Identifier: Apache-2.0
#pragma once

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
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmsieve/image/frame_codec.h"
#include "vmsieve/qemu/ram_layout.h"
#include "vmsieve/store/checkpoint_reader.h"
#include "vmsieve/store/directory_store.h"
#include "vmsieve/store/memory_writer.h"

namespace vmsieve {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

inline constexpr u64 kPages = 4096;
inline constexpr u64 kFramePages = 64;
inline constexpr const char* kId = "00000000000000a1";

/// Every fourth stretch of 64 pages is zeros, and one of the others one byte.
inline u64 word_of(u64 page) {
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

/// A checkpoint, and a process in which its memory belongs; the parameter tells whether that is shared.
class RestoredMemoryTest : public testing::TestWithParam<bool> {
 protected:
  RestoredMemoryTest() : reader_(GetParam()) {
    std::string path = testing::TempDir() + "/page_server_XXXXXX";
    if (::mkdtemp(path.data()) == nullptr) std::abort();
    folder_ = path;
    std::ofstream(log_path()) << "QEMU said this\n";
    write_checkpoint();
  }
  ~RestoredMemoryTest() override { fs::remove_all(folder_); }

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

  Reader reader_;
  fs::path folder_;
  std::unique_ptr<DirectoryStore> store_;
};

}  // namespace vmsieve
