// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/tracked_save.h"

#include <filesystem>

#include "vmsieve/base/clock.h"
#include "vmsieve/capture/live_support.h"
#include "vmsieve/capture/unseen_writes.h"

namespace vmsieve {

namespace {

constexpr const char* kUnfinished = "the last save of this VM was not finished";

/// A name for the store that does not depend on where this program was started.
std::string name_of(const Store& store) {
  std::error_code error;
  const auto path = std::filesystem::canonical(store.name(), error);
  return error ? store.name() : path.string();
}

/// The checkpoint since whose instant all writes were noted; an error says why there is none.
Result<std::unique_ptr<CheckpointReader>> open_base(const Save& save, const Tracking& tracking,
                                                    const Store& store) {
  const TrackingRecord& record = tracking.record();
  if (record.checkpoint.empty()) return Error(ErrorKind::kNotFound, record.why_none);
  if (record.store != name_of(store))
    return make_error(ErrorKind::kNotFound, "the last checkpoint of this VM is in the store {}",
                      record.store);
  VMSIEVE_ASSIGN(auto base, CheckpointReader::open(store, record.checkpoint));
  if (!same_blocks(base->manifest(), save.layout()))
    return make_error(ErrorKind::kIncompatible, "checkpoint {} is of other memory", record.checkpoint);
  return base;
}

Result<TrackedSave> begin_tracking(Save& save) {
  const pid_t pid = save.vm.process.pid;
  VMSIEVE_ASSIGN(WriteProtection protection, make_noting_protection(save.vm));
  VMSIEVE_ASSIGN(auto capture, TrackedCapture::begin(*save.vm.memory, pid, protection));
  const TrackingRecord record{.qemu = pid,
                              .vm_name = save.vm.process.name,
                              .store = "",
                              .checkpoint = "",
                              .why_none = kUnfinished,
                              .blocks = tracked_blocks(save.layout())};
  VMSIEVE_ASSIGN(Tracking tracking, Tracking::start(std::move(protection), record));
  return TrackedSave{std::move(tracking), std::nullopt, nullptr, std::move(capture), false};
}

}  // namespace

bool same_blocks(const Manifest& manifest, const RamLayout& layout) {
  return std::equal(manifest.blocks.begin(), manifest.blocks.end(), layout.blocks.begin(),
                    layout.blocks.end(), [](const BlockRecord& a, const RamBlock& b) {
                      return a.name == b.name && a.used_bytes == b.used_bytes;
                    });
}

Result<std::optional<TrackedSave>> begin_tracked(Save& save, const Store& store) {
  std::optional<TrackedSave> none;
  if (save.options.mode == SaveMode::kPaused) return none;
  const Stopwatch preparing;
  const pid_t pid = save.vm.process.pid;
  const bool incremental = save.options.incremental;
  std::string why = "its writes were not tracked";
  VMSIEVE_ASSIGN(std::optional<Tracking> tracking, Tracking::find(pid));
  if (tracking && tracking->record().blocks != tracked_blocks(save.layout())) {
    why = tracking->record().blocks.empty() ? tracking->record().why_none : "its memory is not what it was";
    VMSIEVE_TRY(tracking->end());
    tracking.reset();
  }
  if (tracking) {
    // Devices may have been plugged since.
    if (const auto seen = check_writes_are_seen(save.vm); !seen.ok()) {
      if (seen.error().kind() != ErrorKind::kUnsupported) return seen.error();
      VMSIEVE_TRY(tracking->end());
      tracking.reset();
    }
  }
  if (!tracking && !incremental) return none;

  std::optional<TrackedSave> tracked;
  if (tracking) {
    std::unique_ptr<CheckpointReader> base;
    if (incremental) {
      if (auto opened = open_base(save, *tracking, store); opened.ok()) {
        base = std::move(*opened);
      } else {
        why = opened.error().message();
      }
    }
    VMSIEVE_ASSIGN(auto capture, TrackedCapture::make(*save.vm.memory, pid, base.get()));
    tracked = TrackedSave{std::move(*tracking), std::nullopt, std::move(base), std::move(capture), false};
  } else if (auto begun = begin_tracking(save); begun.ok()) {
    tracked = std::move(*begun);
  } else if (begun.error().kind() == ErrorKind::kVanished) {
    return begun.error();
  } else {
    why = "its writes cannot be tracked: " + begun.error().message();
  }
  if (tracked) {
    VMSIEVE_ASSIGN(tracked->direct, reads_directly(*save.vm.qmp));
  }
  save.tracked.tracked = tracked.has_value();
  if (incremental && !(tracked && tracked->base)) save.tracked.reason = why;
  save.live.prepare_ms = preparing.ms();
  return tracked;
}

Result<TrackedSave> begin_noting(Save& save) {
  VMSIEVE_ASSIGN(WriteProtection protection, make_noting_protection(save.vm));
  VMSIEVE_ASSIGN(auto capture, TrackedCapture::begin(*save.vm.memory, save.vm.process.pid, protection));
  VMSIEVE_ASSIGN(const bool direct, reads_directly(*save.vm.qmp));
  return TrackedSave{std::nullopt, std::move(protection), nullptr, std::move(capture), direct};
}

Result<void> copy_ahead(Save& save, TrackedSave& tracked, PauseGuard& guard, CapturePipeline& pipeline,
                        unsigned threads, const ProgressFunction& progress) {
  VMSIEVE_ASSIGN(const FreePages estimate, rehearse(save, threads));
  if (tracked.tracking) VMSIEVE_TRY(tracked.tracking->forget_checkpoint(kUnfinished));
  // A read of a disk that is under way when a page is taken would write to it unnoticed.
  TrackedCapture::StandingStill standing_still;
  if (tracked.direct) {
    standing_still = [&](const std::function<Result<void>()>& work) -> Result<void> {
      const Stopwatch pause;
      VMSIEVE_TRY(guard.stop());
      VMSIEVE_TRY(work());
      VMSIEVE_TRY(guard.resume());
      save.tracked.early_pause_ms += pause.ms();
      return {};
    };
  }
  VMSIEVE_TRY(tracked.capture->copy_ahead(estimate.runs, pipeline, threads, progress, standing_still));
  save.earlier = {};
  VMSIEVE_TRY(rehearse(save, threads));
  save.earlier.unwritten = [capture = tracked.capture.get()](const PhysicalExtent& extent) {
    return capture->is_unwritten(extent.address, extent.bytes);
  };
  return {};
}

Result<Stopped> capture_tracked(Save& save, TrackedSave& tracked, PauseGuard& guard,
                                CapturePipeline& pipeline, unsigned threads) {
  const Stopwatch pause;
  // ---- The guest stops.
  VMSIEVE_ASSIGN(Stopped stopped, stop_and_classify(save, guard, threads));

  // After the device state: to save it, QEMU may write to the guest's memory.
  const Stopwatch freezing;
  VMSIEVE_TRY(
      tracked.capture->freeze(stopped.classified.free.runs, pipeline, threads, save.options.longest_wait));
  save.pause.freeze_ms = freezing.ms();

  const Stopwatch resuming;
  VMSIEVE_TRY(let_run(save, guard));
  // ---- The guest runs again.
  save.pause.resume_ms = resuming.ms();
  save.manifest.pause_ms = save.tracked.early_pause_ms + pause.ms() - stopped.classified.ran_ms;
  save.live.sections_reused = save.earlier.reused;

  VMSIEVE_TRY(check_same_memory(save));
  if (tracked.tracking && !tracked.tracking->is_held())
    return Error(ErrorKind::kBusy, "the process that keeps the tracking ended in the middle of the save");
  pipeline.open_gate();
  VMSIEVE_TRY(tracked.capture->submit(pipeline));
  save.tracked.figures = tracked.capture->figures();
  return stopped;
}

Result<void> finish_tracked(TrackedSave& tracked, const Store& store, const std::string& checkpoint) {
  if (!tracked.tracking) return {};
  return tracked.tracking->set_checkpoint(name_of(store), checkpoint);
}

}  // namespace vmsieve
