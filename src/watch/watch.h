// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/capture/save.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/restore/restore.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

struct WatchOptions {
  std::chrono::milliseconds every{10000};
  /// Of the checkpoints that a watch of this VM has taken, so many of the newest stay; 0: all.
  u64 keep = 0;
  /// Brings the guest back when its QEMU ends, or does not answer for `dead_after` (it is killed then).
  bool restart = false;
  std::chrono::milliseconds dead_after{60000};
  SaveOptions save;  ///< `incremental` and `periodic` are set by watch()
  RestoreOptions restore;
};

/// What happened, in the order in which it did.
struct WatchEvent {
  enum class Kind {
    kSaved,      ///< `saved`
    kFailed,     ///< `error`: of a save, which is tried again after `again_in`
    kSkipped,    ///< `skipped` beats, for a save took longer than one
    kRemoved,    ///< `checkpoint` was thinned out
    kDied,       ///< `error` says how the VM's QEMU ended, or that it does not answer
    kUnusable,   ///< `checkpoint` could not be restored: `error`
    kWaiting,    ///< `error`: why the VM is not brought back before `again_in`
    kRestarted,  ///< `restored`, from `checkpoint`
  };
  Kind kind = Kind::kSaved;
  const SaveReport* saved = nullptr;
  const RestoreReport* restored = nullptr;
  std::optional<Error> error = std::nullopt;
  u64 skipped = 0;
  std::chrono::milliseconds again_in{0};
  std::string checkpoint = {};
};

/// Waits until `deadline`, or until the process behind `process` (a pidfd; -1: none) ends; true when the
/// watch is to end.
using WatchWait = std::function<bool(int process, std::chrono::steady_clock::time_point deadline)>;

/// Takes an incremental checkpoint of a VM at every beat until `wait` says that it is enough. A beat that
/// comes while a save is under way is skipped. kBusy when another process watches the VM. Errors of a save
/// are told and not the end; the VM's end is, unless it is brought back: kVanished. Where that fails for a
/// reason that may pass, it is tried until `wait` says that it is enough. A restarted VM is a child of this
/// process.
Result<void> watch(VmAddress vm, Store& store, const WatchOptions& options, const WatchWait& wait,
                   const std::function<void(const WatchEvent&)>& tell, const ProgressFunction& progress);

}  // namespace vmsieve
