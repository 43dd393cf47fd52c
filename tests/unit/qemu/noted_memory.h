// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <optional>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "unit/qemu/victim.h"
#include "vmsieve/base/fd.h"
#include "vmsieve/qemu/page_residency.h"
#include "vmsieve/qemu/write_protection.h"

namespace vmsieve::test {

/// What the memory of a test is made of.
enum class MemoryKind {
  kPrivate,      ///< anonymous
  kHuge,         ///< anonymous, transparent huge pages
  kShared,       ///< a memfd
  kHugeTable,    ///< a memfd of huge pages (hugetlb)
  kFileShared,   ///< a file on a disk
  kFilePrivate,  ///< the same, copied on write
};
std::string to_string(MemoryKind kind);

/// 12 MiB of memory at a multiple of 2 MiB, mapped here and, as a child inherits them, in another process,
/// which does to them what it is told.
class NotedMemory {
 public:
  static constexpr u64 kPages = 3072;
  static constexpr u64 kHugePages = 512;  ///< of which a huge page is made
  static constexpr u64 kBytes = kPages * kPageSize;

  explicit NotedMemory(MemoryKind kind);
  ~NotedMemory();
  NotedMemory(const NotedMemory&) = delete;
  NotedMemory& operator=(const NotedMemory&) = delete;

  /// Not when the host has no huge pages to give, or no disk.
  bool made() const { return start_ != nullptr; }
  u64 address(u64 page) const { return reinterpret_cast<u64>(start_) + page * kPageSize; }
  ByteRange range(u64 first, u64 pages) const { return {address(first), address(first + pages)}; }
  ByteRange all() const { return range(0, kPages); }

  /// What the process does with pages; answers whether it has done it, and the call did not fail.
  enum class Act : u64 {
    kNone,
    kWrite,
    kRead,
    kReceive,   ///< read(2) from a pipe into them
    kDiscard,   ///< MADV_DONTNEED
    kPunch,     ///< a hole into the file
    kPageOut,   ///< MADV_PAGEOUT
    kCollapse,  ///< MADV_COLLAPSE
    kUnmap,
    kReplace,  ///< by other memory
    kPin,      ///< for the kernel to write to by and by (a registered buffer of io_uring(7))
    kReceivePinned,
    kFork,  ///< a child with a copy of the memory, which goes on living
  };
  bool does(Act act, u64 first = 0, u64 pages = 1) { return does_each(act, first, pages, 1); }
  /// The same; of the pages only every `step`th is written.
  bool does_each(Act act, u64 first, u64 pages, u64 step);

  pid_t pid() const { return victim_->pid(); }
  /// The first word of a page, as another process reads it.
  u64 word(u64 page) const;
  /// What the last kWrite has put there.
  u64 last_word() const { return board_->word; }

 private:
  struct Board {
    std::atomic<Act> act = Act::kNone;
    std::atomic<u64> first = 0;
    std::atomic<u64> pages = 0;
    std::atomic<u64> step = 1;
    std::atomic<u64> word = 0;
    std::atomic<bool> failed = false;
  };
  void map(MemoryKind kind);
  void borrow(u64 huge_pages);
  void give_back();
  void live();
  bool obey(Act act, std::byte* at, u64 offset, u64 bytes);
  bool pin(std::byte* at, u64 bytes);
  bool receive_pinned(std::byte* at, u64 bytes);

  UniqueFd file_;
  u64 borrowed_ = 0;  // huge pages that were put into the host's pool
  void* reserved_ = nullptr;
  std::byte* start_ = nullptr;
  Board* board_ = nullptr;
  UniqueFd ring_;  // the process's
  std::optional<Victim> victim_;
};

/// A process with memory whose writes are noted.
class Noted {
 public:
  /// Of the kind; prepared: the process has written every third page of the first half before.
  explicit Noted(MemoryKind kind) : memory(kind) {}
  /// Skips the test when it cannot be made. `ranges`: what is tracked; else everything.
  void start(std::vector<ByteRange> ranges = {});

  /// The pages that are told of, by their numbers.
  std::set<u64> written(Pagemap::Take take = Pagemap::Take::kYes) const {
    return written(memory.all(), take);
  }
  std::set<u64> written(ByteRange range, Pagemap::Take take) const;

  NotedMemory memory;
  std::optional<WriteProtection> protection;
  std::optional<Pagemap> pagemap;
};

#define START_NOTED(noted, ...) \
  noted.start(__VA_ARGS__);     \
  if (testing::Test::IsSkipped() || testing::Test::HasFatalFailure()) return

}  // namespace vmsieve::test
