// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <sys/types.h>

#include "vmsieve/base/clock.h"
#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/image/working_set.h"
#include "vmsieve/qemu/missing_pages.h"
#include "vmsieve/qemu/vm_lock.h"
#include "vmsieve/restore/missing_guard.h"
#include "vmsieve/restore/missing_plan.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve {

/// What came of bringing a VM's memory in.
struct FillFigures {
  u64 pages = 0;                ///< that were brought in, without those that read as zeros
  u64 first_jobs = 0;           ///< that were brought in by a working set, before anybody waited for them
  u64 faults = 0;               ///< pages that somebody waited for, zeros among them
  double longest_fault_ms = 0;  ///< from being told of it to the page
  double fill_ms = 0;           ///< until all was there
};

/// Brings the memory of a new QEMU in from a checkpoint: first the pages that somebody waits for, with all
/// others of the same frame, and beside that all the rest, until nothing is missing. Every frame is checked
/// before one of its pages is placed.
///
/// A VM never runs on pages that are missing: QEMU itself keeps the userfaultfd, so its threads wait for ever
/// when we are gone, and a guard (MissingGuard) ends it then. On an error here (a damaged frame, a store that
/// cannot be read) it is ended at once, and its log says why.
///
/// A page that was brought in, and that QEMU has discarded since (a balloon), reads as zeros afterwards.
class PageServer {
 public:
  struct Target {
    pid_t qemu = -1;
    std::string log_path;  ///< QEMU's; where words are left when it has to be ended
  };

  struct Options {
    unsigned threads = 1;   ///< at least one
    WorkingSet first = {};  ///< frames that are brought in before all others
    /// Nothing but what is waited for is brought in during the guest's first second, so that it is seen what
    /// it wants.
    bool record = false;
  };

  /// Takes QEMU's memory over: from the return on, whoever touches a page of the plan gets it. QEMU waits for
  /// its migration stream, and has touched nothing of that memory. On an error nothing is changed,
  /// kUnsupported and kPermission among them. `threads` fill; one more serves faults only.
  static Result<std::unique_ptr<PageServer>> start(std::shared_ptr<const CheckpointReader> reader,
                                                   MissingPlan plan, const Target& target,
                                                   const Options& options);
  /// Unless all is there, ends QEMU.
  ~PageServer();
  PageServer(const PageServer&) = delete;
  PageServer& operator=(const PageServer&) = delete;

  /// Waits until nothing is missing and QEMU's memory is its own. An error when it was ended, or has ended.
  /// `progress` (may be empty) is called a few times a second.
  Result<void> wait(const ProgressFunction& progress = {});
  /// Why QEMU was ended; none so far. Any thread.
  std::optional<Error> error() const;
  /// After wait().
  FillFigures figures() const;
  /// After wait(): what somebody waited for in the guest's first second.
  WorkingSet working_set() const;

 private:
  enum class JobState : u8 { kOpen, kTaken, kDone };
  struct Scratch;
  using Clock = std::chrono::steady_clock;
  struct Waiting {
    std::size_t job = 0;
    u64 address = 0;
  };
  struct Urgent {
    std::size_t job = 0;
    u64 address = 0;
    Clock::time_point told;
  };

  PageServer(std::shared_ptr<const CheckpointReader> reader, MissingPlan plan, Target target,
             MissingPages missing, int theirs, const Options& options);
  Result<void> prepare(unsigned threads);

  void serve_faults();
  Result<void> serve_fault(u64 address);
  Result<void> place_zeros(const MissingPlan::Place& place, u64 address);
  Result<void> keep_guard();

  void work(bool faults_only);
  std::optional<std::size_t> next_first();
  std::optional<std::size_t> next_open();
  bool guest_needs_the_cores() const;
  void note_wanted(std::size_t job);
  bool take(std::size_t job);
  Result<void> do_job(std::size_t job, u64 first_address, Scratch& scratch);
  Result<void> place_piece(const MissingPiece& piece, std::span<const std::byte> bytes, u64 first_address);
  Result<void> place_huge_page(const MissingJob& job, Scratch& scratch);
  Result<std::span<const std::byte>> piece_bytes(const MissingPiece& piece, Scratch& scratch) const;
  void job_is_done(std::size_t job);
  void finish();
  void fail(const Error& error);
  Error ended_error() const;
  void note_fault(Clock::time_point told);

  const std::shared_ptr<const CheckpointReader> reader_;
  const MissingPlan plan_;
  const Target target_;
  const MissingPages missing_;
  const int theirs_;  ///< QEMU's descriptor of the userfaultfd
  UniqueFd qemu_;     ///< a handle of the process
  UniqueFd log_;
  std::unique_ptr<MissingGuard> guard_;  // the fault thread's while it runs
  std::optional<Result<VmLock>> lock_;   // and this: a save must not see memory with holes
  const Stopwatch watch_;
  const Clock::time_point began_ = Clock::now();
  std::atomic<Clock::time_point> last_asked_ = Clock::time_point{};

  std::vector<std::byte> zeros_;
  const std::vector<std::size_t> first_;  ///< jobs, in this order before all others
  const bool record_;
  std::atomic<std::size_t> next_first_ = 0;
  std::atomic<u64> first_jobs_ = 0;
  std::atomic<std::size_t> next_job_ = 0;
  std::atomic<bool> stopping_ = false;

  mutable std::mutex mutex_;
  std::condition_variable urgent_comes_;
  std::condition_variable ended_;
  // All of these by mutex_.
  std::vector<JobState> states_;
  std::size_t jobs_left_ = 0;
  std::atomic<bool> all_placed_;
  std::deque<Urgent> urgent_;
  std::vector<Waiting> waiting_;  ///< for jobs that are taken
  bool complete_ = false;
  std::optional<Error> error_;
  FillFigures figures_;

  std::vector<std::size_t> wanted_;  // jobs; the fault thread's until all is there
  std::vector<bool> is_wanted_;      // by job
  std::thread fault_thread_;
  std::vector<std::thread> workers_;
};

}  // namespace vmsieve
