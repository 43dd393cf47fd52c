// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "unit/capture/writing_guest.h"
#include "vmsieve/capture/pipeline.h"
#include "vmsieve/capture/tracked_capture.h"
#include "vmsieve/qemu/write_protection.h"
#include "vmsieve/store/checkpoint_reader.h"
#include "vmsieve/store/directory_store.h"

namespace vmsieve::test {

/// A guest whose writes are noted, and a store on a disk that its checkpoints go into.
class TrackedSession {
 public:
  /// How one checkpoint is taken.
  struct Plan {
    std::vector<PfnRange> early_free = {};  ///< what is taken for free while the guest runs
    std::vector<PfnRange> free = {};        ///< what is free at the instant
    bool full = false;                      ///< builds on nothing
    bool compared = false;  ///< with the last checkpoint: what is the same is not stored again
    unsigned threads = 2;
    u64 buffer_bytes = 8 * kMiB;
    u64 chunk_pages = 64;
    std::chrono::microseconds slowness{0};  ///< passes whenever something is written
    u64 fails_after = ~u64{0};              ///< so many bytes fit on the disk
    bool fails_from_the_stop_on = false;    ///< it is full only when the guest is stopped
    std::function<void()> before_the_stop = [] {};
    ProgressFunction progress = [](const Progress&) {};
  };

  explicit TrackedSession(const WritingGuest::Options& options);
  ~TrackedSession();

  /// Begins to note writes; what is saved next is the first checkpoint. Skips the test where it cannot.
  void track();
  /// Takes a checkpoint and compares every page of it, as it is read back from the store, with what the guest
  /// held at the instant.
  void save(const Plan& plan);

  /// The steps of save(), one by one.
  Result<void> begin(const Plan& plan);
  Result<void> copy_ahead() {
    return capture->copy_ahead(plan_.early_free, *pipeline_, plan_.threads, plan_.progress);
  }
  void stop();  ///< and remembers what is there
  Result<void> freeze() {
    return capture->freeze(plan_.free, *pipeline_, plan_.threads, std::chrono::seconds(30));
  }
  Result<void> submit() { return capture->submit(*pipeline_); }
  Result<CapturePipeline::Outcome> finish() { return pipeline_->finish(); }
  void commit();  ///< finish() and all that follows
  void compare();
  /// Drops a checkpoint that was begun.
  void abandon();

  WritingGuest guest;
  std::unique_ptr<LiveMemory> memory;
  std::optional<WriteProtection> protection;
  std::unique_ptr<TrackedCapture> capture;
  std::unique_ptr<CheckpointReader> base;  ///< the last checkpoint
  PageCounts counts;                       ///< of the last checkpoint
  u64 new_frames = 0;                      ///< in its own object
  std::filesystem::path folder;
  std::unique_ptr<DirectoryStore> store;

 private:
  Manifest manifest(const ObjectRecord& memory_record, const ObjectRecord& device_record) const;

  Plan plan_;
  std::atomic<bool> full_ = false;  // the disk
  bool first_ = false;              // the capture was made by track()
  std::vector<std::byte> truth_;
  std::unique_ptr<CheckpointWriter> checkpoint_;
  std::unique_ptr<ObjectWriter> object_;
  std::unique_ptr<MemoryObjectWriter> writer_;
  std::unique_ptr<CapturePipeline> pipeline_;
};

#define TRACK_OR_RETURN(session) \
  session.track();               \
  if (session.capture == nullptr) return

}  // namespace vmsieve::test
