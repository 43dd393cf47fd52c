// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <optional>

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/capture/live_capture.h"
#include "vmsieve/capture/tracked_capture.h"
#include "vmsieve/image/disk_record.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/manifest.h"
#include "vmsieve/pages/free_pages.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

/// How the guest's memory is taken. kLive: the guest stops for an instant, and its pages are copied while it
/// runs again. kPaused: it stands still until they are in this program's buffers. kAny: live where possible.
enum class SaveMode { kAny, kLive, kPaused };

/// What becomes of the VM's writable disks.
struct DiskOptions {
  /// How their point in time is taken; none: it is not, and the user cares for them.
  std::optional<DiskWay> way = DiskWay::kSnapshot;
  std::string folder;  ///< of overlays; empty: beside each image
};

struct SaveOptions {
  SaveMode mode = SaveMode::kAny;
  /// Only what was written since the VM's last checkpoint in the same store, where its writes were tracked
  /// since; a full save otherwise, and they are from then on.
  bool incremental = false;
  bool periodic = false;  ///< Manifest::periodic
  /// Whether the guest counts as one that ran, instead of whether it does.
  std::optional<bool> was_running = std::nullopt;
  DiskOptions disks = {};
  /// The guest's agent freezes its file systems for the pause; it must have done so within this time.
  std::optional<std::chrono::milliseconds> quiesce = std::nullopt;
  Compression compression;
  bool introspection = true;      ///< false: every page is saved
  FreeKinds kinds{};              ///< of free pages that are left out
  unsigned threads = 0;           ///< 0: one for each core
  u64 buffer_bytes = 256 * kMiB;  ///< guest pages held in memory at most
  /// A save that makes a write of the guest, or the guest itself, wait longer for the store is given up;
  /// should this process itself stand still, it is killed some seconds later.
  std::chrono::milliseconds longest_wait{30000};
};

/// Where the pause went, milliseconds.
struct PauseParts {
  double stop_ms = 0;
  double classify_ms = 0;  ///< vCPU registers, proof of the kernel, page structures
  double device_ms = 0;
  double disks_ms = 0;
  double plan_ms = 0;  ///< which pages to read: residency
  double read_ms = 0;
  double freeze_ms = 0;  ///< of a live save: protecting what was written since the preparation
  double resume_ms = 0;
};

/// Of a live save, what happened outside the pause.
struct LiveReport {
  double prepare_ms = 0;  ///< attaching and protecting all memory, before the pause
  double copy_ms = 0;     ///< after the pause, until the guest's memory was let go
  LiveFigures figures;
  u64 sections_reused = 0;  ///< memory sections whose page structures were not read inside the pause
  std::string reason;       ///< why the save was paused although any mode would have done
};

/// Of a save by noting the guest's writes.
struct TrackedReport {
  bool noted = false;    ///< was it one?
  bool tracked = false;  ///< are they noted after it as well, for the next incremental save?
  bool incremental = false;
  /// Why a save is full that was asked to be incremental, or why it had to read and compare every page.
  std::string reason;
  double early_pause_ms = 0;  ///< of the pause, what came before the last stop: see reads_directly()
  TrackedFigures figures;
};

struct SaveReport {
  Manifest manifest;
  PauseParts pause;
  LiveReport live;
  TrackedReport tracked;
  std::optional<u64> frozen_file_systems;  ///< for the pause, where it was asked for
  DiskRecord disks;                        ///< empty when they are not part of the checkpoint
  std::vector<std::string> warnings;       ///< for the user, one sentence each
};

/// Takes a checkpoint of a running (or stopped) VM into `store`.
///
/// On any error nothing of the checkpoint remains in the store, and a guest that ran runs on; the
/// same when this process is killed, by the pause guard, the next Store::sweep() and, for disks, the next
/// tidy_disks(). Blocks until
/// the checkpoint is durable. One save per VM at a time: kBusy names the process
/// of the other one.
/// Forks a process, so call it before starting threads that hold locks.
Result<SaveReport> save(const VmAddress& vm, Store& store, const SaveOptions& options,
                        const ProgressFunction& progress);

}  // namespace vmsieve
