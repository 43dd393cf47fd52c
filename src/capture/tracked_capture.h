// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/capture/memory_units.h"
#include "vmsieve/capture/page_set.h"
#include "vmsieve/capture/pipeline.h"
#include "vmsieve/pages/free_pages.h"
#include "vmsieve/qemu/live_memory.h"
#include "vmsieve/qemu/page_residency.h"
#include "vmsieve/qemu/write_protection.h"
#include "vmsieve/store/checkpoint_reader.h"
#include "vmsieve/store/memory_writer.h"

namespace vmsieve {

/// What a tracked capture did.
struct TrackedFigures {
  u64 rounds = 0;        ///< of copying while the guest ran
  u64 copied_pages = 0;  ///< in all, those that were copied more than once so often
  u64 frozen_pages = 0;  ///< of these inside the pause
  double before_ms = 0;  ///< what the rounds took
  double scan_ms = 0;    ///< inside the pause: asking what was written
};

/// Copies the memory of a guest whose writes the kernel notes (WriteProtection, kNote): what was written
/// since an earlier checkpoint's instant, first while the guest runs, round by round, and in the pause what
/// was written since the last round. Nobody ever waits for this process. docs/incremental.md has the
/// argument.
///
/// A page is stale when the base, an earlier checkpoint, does not say what is in it; held when its
/// bytes were copied after it was last written.
class TrackedCapture {
 public:
  /// Pages are copied into the pipeline's lists below this number; make it with so many lists.
  std::size_t lists() const;

  /// `base`: the checkpoint since whose instant all writes to `memory` are noted, of the same
  /// blocks; nullptr: nothing is known of any page. It and `memory`, of process `pid`, must outlive this.
  static Result<std::unique_ptr<TrackedCapture>> make(const LiveMemory& memory, pid_t pid,
                                                      const CheckpointReader* base);

  /// Instead, for memory that is not tracked yet: begins to note writes. `protection` (kNote) has all blocks.
  static Result<std::unique_ptr<TrackedCapture>> begin(const LiveMemory& memory, pid_t pid,
                                                       const WriteProtection& protection);

  /// Calls what it is given while the guest stands still.
  using StandingStill = std::function<Result<void>(const std::function<Result<void>()>&)>;
  /// Copies while the guest runs, until little is left. `free`: pages not worth copying, if they stay free.
  /// Consumes what was noted: without a commit behind it, nothing is known of later writes. `standing_still`,
  /// if there is one, is used for asking what was written: for a guest into whose memory devices are read
  /// directly, see reads_directly().
  Result<void> copy_ahead(std::span<const PfnRange> free, CapturePipeline& pipeline, unsigned threads,
                          const ProgressFunction& progress, const StandingStill& standing_still = {});

  /// Was nothing written to this guest-physical memory since copy_ahead() returned?
  bool is_unwritten(GuestPhysical address, u64 bytes) const;

  /// The instant; the guest must be stopped. Copies what is stale, not held and not free. kTimeout when that
  /// has to wait for the store, and longer than `longest_pause`.
  Result<void> freeze(std::span<const PfnRange> free, CapturePipeline& pipeline, unsigned threads,
                      std::chrono::milliseconds longest_pause);

  /// The guest may run: hands to the pipeline what was kept, without free pages.
  Result<void> submit(CapturePipeline& pipeline);

  /// The complete index of every block, of the instant. Frames of the base are named as those of an ancestor.
  /// `counts`: of all its pages.
  Result<std::vector<BlockIndex>> index(CapturePipeline::Outcome& outcome, MemoryObjectWriter& writer,
                                        u8 free_fill, PageCounts& counts) const;

  const TrackedFigures& figures() const { return figures_; }

 private:
  using TimePoint = std::chrono::steady_clock::time_point;
  /// A chunk that is kept until the instant, so that pages that are written again can be replaced.
  struct Kept {
    Chunk chunk;
    std::byte* buffer = nullptr;
  };
  /// Where in a kept chunk the pages from a number on are.
  struct Place {
    u64 pages = 0;
    std::byte* bytes = nullptr;
  };
  /// Pages of one block to be copied to one place.
  struct Copy {
    u32 block = 0;
    BlockPages pages;
    std::byte* to = nullptr;
  };

  TrackedCapture(const LiveMemory& memory, Pagemap pagemap, const CheckpointReader* base);
  /// What is to be asked about of a block: all but what is free, in the host's address space, ascending.
  std::vector<ByteRange> not_free(u32 block) const;
  Result<void> take_written(unsigned threads, int nice);
  std::vector<PageSet> wanted() const;
  void set_free(std::span<const PfnRange> free);
  Result<void> copy(const std::vector<PageSet>& wanted, CapturePipeline& pipeline, unsigned threads,
                    std::size_t layer, u64 most_kept, std::optional<TimePoint> deadline,
                    const ProgressFunction* progress);
  void replace(u32 block, BlockPages run, std::vector<Copy>& copies, std::vector<BlockPages>& rest) const;
  Result<void> read(const Copy& copy) const;

  const LiveMemory& memory_;
  const Pagemap pagemap_;
  const MemoryUnits units_;
  const CheckpointReader* const base_;

  std::vector<PageSet> stale_;  // by block, as are the following
  std::vector<PageSet> held_;
  std::vector<PageSet> free_;
  std::vector<std::map<u64, Place>> places_;  // by first page
  std::vector<Kept> kept_;
  TrackedFigures figures_;
};

}  // namespace vmsieve
