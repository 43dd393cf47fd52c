// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <span>
#include <string>
#include <vector>

#include <sys/types.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/qemu/ram_layout.h"

namespace vmsieve::test {

/// Stands for QEMU and the guest in it: a forked process with RAM blocks, whose threads write to random pages
/// all the time. Whatever it writes goes, after the page itself, into a mirror that nobody protects; so when
/// the guest stands still, the mirror says what its memory holds without looking at it.
class WritingGuest {
 public:
  struct BlockSpec {
    u64 pages = 0;
    bool shared = false;              ///< a memfd; else private anonymous memory
    bool on_disk = false;             ///< a file on a disk, shared or copied on write
    bool huge = false;                ///< in transparent huge pages where the host gives them
    u64 pages_off_unit = 0;           ///< by how many pages its address is not a multiple of 2 MiB
    u64 host_page_bytes = kPageSize;  ///< told in the layout only
    u64 bytes_less = 0;               ///< by how many the block ends before its last page does; in the layout
  };
  struct Options {
    std::vector<BlockSpec> blocks;
    unsigned writers = 2;
    /// The last pages of the first block are written on order only.
    u64 reserved_pages = 0;
    /// Writes of each writer between two naps.
    u64 writes_at_once = 8;
    u64 seed = 1;
  };

  /// Ends the test program when it cannot be made. The process has written about a third of its pages when
  /// this returns, and its threads run.
  explicit WritingGuest(const Options& options);
  ~WritingGuest();
  WritingGuest(const WritingGuest&) = delete;
  WritingGuest& operator=(const WritingGuest&) = delete;

  pid_t pid() const { return pid_; }
  /// Blocks in reverse order of their addresses; the first block is guest RAM at address 0, the others
  /// follow at multiples of 1 GiB.
  RamLayout layout() const;
  const Options& options() const { return options_; }
  u64 pages(u32 block) const { return options_.blocks[block].pages; }
  /// The first of the reserved pages.
  u64 reserved() const { return pages(0) - options_.reserved_pages; }

  /// As a VM's stop: returns when no writer is in the middle of a write. False when one does not get there
  /// within five seconds.
  bool stop();
  void resume();
  /// A copy of the mirror: all blocks, one behind the other.
  std::vector<std::byte> truth() const;
  std::span<const std::byte> truth_of(const std::vector<std::byte>& truth, u32 block, u64 page) const;

  /// What another thread of the process than the writers does, once, and answers for.
  enum class Order : u64 { kNone, kWrite, kRead, kDiscard };
  /// Pages of block 0. Discarding is madvise(MADV_DONTNEED), or a hole punched into the file.
  void begin(Order order, u64 first, u64 pages);
  /// Has it been done within so many milliseconds?
  bool is_done(int milliseconds = 5000) const;
  bool does(Order order, u64 first, u64 pages) {
    begin(order, first, pages);
    return is_done();
  }

  /// Does every writer make hundreds of writes within five seconds? They go to all parts of the memory.
  bool goes_on() const;
  void kill();

  /// The words that pages hold: see write_page() in the source.
  static std::string describe(std::span<const std::byte> page);

 private:
  static constexpr unsigned kMaxWriters = 8;
  struct Board {
    std::atomic<bool> stopped = false;
    std::atomic<u64> writes[kMaxWriters] = {};
    std::atomic<bool> paused[kMaxWriters] = {};
    std::atomic<Order> order = Order::kNone;
    std::atomic<u64> first = 0;
    std::atomic<u64> pages = 0;
    std::atomic<u64> ready = 0;
  };

  [[noreturn]] void live();
  void write_for_ever(unsigned number);
  void write_page(u64 global_page, u64 generation);
  void obey();
  std::byte* page_at(u64 global_page) const;
  u64 total_pages() const { return first_page_.back(); }

  const Options options_;
  std::vector<std::byte*> blocks_;
  std::vector<UniqueFd> files_;
  std::vector<u64> first_page_;  // of each block in the mirror; one more at the end
  std::byte* arena_ = nullptr;
  u64 arena_bytes_ = 0;
  std::byte* mirror_ = nullptr;
  Board* board_ = nullptr;
  pid_t pid_ = -1;
};

}  // namespace vmsieve::test
