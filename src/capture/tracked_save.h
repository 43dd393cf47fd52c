// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "vmsieve/capture/save_steps.h"
#include "vmsieve/capture/tracked_capture.h"
#include "vmsieve/capture/tracking.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve {

/// A save of a VM whose writes are noted.
struct TrackedSave {
  std::optional<Tracking> tracking;           ///< none: they are noted for this save only
  std::optional<WriteProtection> protection;  ///< then, by this
  std::unique_ptr<CheckpointReader> base;     ///< of an incremental save
  std::unique_ptr<TrackedCapture> capture;
  bool direct = false;  ///< reads_directly()
};

/// Is a checkpoint of memory in the same blocks?
bool same_blocks(const Manifest& manifest, const RamLayout& layout);

/// For a VM that is tracked, or that an incremental save is asked for: begins to track it where it is not,
/// and opens the checkpoint that the new one is to build on. None when the save is to go another way;
/// Save::tracked tells why a save is not incremental.
Result<std::optional<TrackedSave>> begin_tracked(Save& save, const Store& store);

/// For a VM whose memory cannot be protected otherwise (a file on a disk): its writes are noted for this
/// save.
Result<TrackedSave> begin_noting(Save& save);

/// Copies ahead, and makes the rehearsal that the pause builds on. From here on the VM's record names no
/// checkpoint, until finish_tracked(). The guest may be stopped when it fails, and only then.
Result<void> copy_ahead(Save& save, TrackedSave& tracked, PauseGuard& guard, CapturePipeline& pipeline,
                        unsigned threads, const ProgressFunction& progress);

/// The pause, and the handing over of what was copied. The guest may still be stopped when it fails.
Result<Stopped> capture_tracked(Save& save, TrackedSave& tracked, PauseGuard& guard,
                                CapturePipeline& pipeline, unsigned threads);

/// After the commit: writes are noted since the instant of this checkpoint.
Result<void> finish_tracked(TrackedSave& tracked, const Store& store, const std::string& checkpoint);

}  // namespace vmsieve
