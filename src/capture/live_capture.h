// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "vmsieve/base/anonymous_memory.h"
#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/capture/memory_units.h"
#include "vmsieve/capture/page_plan.h"
#include "vmsieve/capture/pipeline.h"
#include "vmsieve/guest/page_tables.h"
#include "vmsieve/qemu/live_memory.h"
#include "vmsieve/qemu/page_residency.h"
#include "vmsieve/qemu/write_protection.h"

namespace vmsieve {

/// What a live capture cost the guest.
struct LiveFigures {
  u64 rewritten_bytes = 0;     ///< written by the guest between start() and freeze(), in whole units
  u64 waits = 0;               ///< how often the guest's writes waited for a copy
  double longest_wait_ms = 0;  ///< from when a wait was noticed until the write went through
};

/// Copies the memory of a guest as it is at one instant, freeze(), while the guest runs before and after it.
/// docs/live.md says why no write is missed.
///
/// A thread of its own answers the guest's writes from start() on: before the instant by letting them through
/// and noting where they were, after it by copying what they are about to change. When this object goes, or
/// its process dies, every write goes through.
class LiveCapture {
 public:
  struct Options {
    /// A write that waits longer for room in the pipeline ends the capture: the guest comes first.
    std::chrono::milliseconds longest_wait{30000};
    /// Called by the answering thread ten times a second, unless it cannot do its work.
    std::function<void()> beat;
  };

  /// Protects all RAM blocks of `memory`, of process `pid`, while the guest runs. `memory` must outlive this.
  /// kUnsupported and kBusy as WriteProtection says.
  static Result<std::unique_ptr<LiveCapture>> start(const LiveMemory& memory, pid_t pid,
                                                    WriteProtection protection, const Options& options);
  ~LiveCapture();
  LiveCapture(const LiveCapture&) = delete;
  LiveCapture& operator=(const LiveCapture&) = delete;

  /// Was nothing written to this guest-physical memory since start() returned, or, if it was protected again
  /// since, since then? Before freeze().
  bool is_unwritten(GuestPhysical address, u64 bytes) const;

  /// While the guest runs, before freeze(): protects again what was written of these. For each of them
  /// whether it was (true, too, where that cannot be known): what was read of it before this call says
  /// nothing now.
  Result<std::vector<bool>> protect_again(std::span<const PhysicalExtent> extents);

  /// The instant; the guest must be stopped. Protects again what was written since start(). From the return
  /// on the guest may run.
  Result<void> freeze();

  /// After freeze(): the pages of [first, first + count) of a block that may have held something other than
  /// zeros at the instant.
  std::vector<LiveMemory::PageRun> resident(u32 block, u64 first, u64 count) const;

  /// Copies all pages that `plan` reads into `pipeline`, with `threads` threads, those first that the guest
  /// is waiting to write, then those around which it wrote between start() and freeze(): it will soon write
  /// there again, and a restored one too. Lets go of everything. kBusy when memory was taken from the guest
  /// before it was copied (a balloon, unplugged memory), or was taken and given back before the instant:
  /// there is no telling what it held. kTimeout when a write waited too long.
  /// When it returns, `pipeline` is not used any more.
  Result<void> copy(const PagePlan& plan, CapturePipeline& pipeline, unsigned threads,
                    const ProgressFunction& progress);

  LiveFigures figures() const;

 private:
  enum class Phase { kTracking, kFreezing, kFrozen, kCopying };
  enum class State : u8 { kPending, kCopying, kDone };
  using TimePoint = std::chrono::steady_clock::time_point;
  struct Wait {
    std::size_t unit = 0;
    TimePoint since;
  };
  /// A unit that was written between freeze() and copy(), as it was.
  struct EarlyCopy {
    std::size_t unit = 0;
    AnonymousMemory bytes;
    std::vector<ByteRange> unprotected;  ///< see unprotected()
  };

  LiveCapture(const LiveMemory& memory, Pagemap pagemap, MemoryUnits units, WriteProtection protection,
              const Options& options);
  Result<void> protect_all();
  std::optional<std::vector<std::size_t>> units_of(const PhysicalExtent& extent) const;
  void note_resident(std::size_t unit);
  void answer();
  Result<void> answer_writes();
  Result<void> let_through(const std::vector<std::size_t>& units);
  Result<void> hurry(const Wait& wait);
  Result<void> copy_early(const Wait& wait);
  Result<void> submit_early(const EarlyCopy& copy);
  Result<void> submit_early_copies();
  Result<void> check_awaited();
  void note_wait(TimePoint since);
  bool claim(std::size_t unit);
  Result<void> release_unused();
  Result<void> release_claimed(std::vector<std::size_t>& units);
  Result<void> copy_unit(std::size_t unit, std::optional<TimePoint> deadline);
  Result<void> copy_chunk(const Chunk& chunk, std::optional<TimePoint> deadline);
  Result<std::vector<ByteRange>> unprotected(std::size_t unit) const;
  Result<void> check_zeros(std::size_t unit, const std::vector<ByteRange>& unprotected) const;
  Result<void> check_untouched(std::size_t unit, std::span<const LiveMemory::PageRun> runs) const;
  std::vector<std::size_t> by_recent_writes() const;
  void copy_in_background(const ProgressFunction* progress);
  void fail(const Error& error);

  const LiveMemory& memory_;
  const Pagemap pagemap_;
  const MemoryUnits units_;
  const WriteProtection protection_;
  const Options options_;

  // Set before the phase is kCopying, and not changed after.
  std::vector<std::vector<LiveMemory::PageRun>> resident_;  // of each block
  UnitChunks chunks_;
  std::vector<std::vector<PageRun>> known_;  // of each block: what the plan does not read
  CapturePipeline* pipeline_ = nullptr;
  std::mutex pipeline_mutex_;  // held by the answering thread while it uses the pipeline
  std::unique_ptr<std::atomic<State>[]> states_;

  std::vector<std::size_t> order_;  // in which units are copied in the background
  std::atomic<std::size_t> next_in_order_ = 0;
  std::atomic<u64> copied_pages_ = 0;
  u64 pages_to_copy_ = 0;

  mutable std::mutex mutex_;
  Phase phase_ = Phase::kTracking;  // under mutex_
  std::vector<bool> rewritten_;     // under mutex_: units let through since they were last protected
  std::vector<bool> was_written_;   // under mutex_: units let through since start()
  std::deque<Wait> held_;           // under mutex_: writes that wait for freeze() to be done
  std::vector<EarlyCopy> early_;    // under mutex_
  std::optional<Error> error_;      // under mutex_
  LiveFigures figures_;             // under mutex_

  std::vector<Wait> awaited_;  // the answering thread's: units that another thread is copying
  std::atomic<bool> failed_ = false;
  std::atomic<bool> ended_ = false;
  std::thread answering_;
};

}  // namespace vmsieve
