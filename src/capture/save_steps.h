// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/capture/attach.h"
#include "vmsieve/capture/page_plan.h"
#include "vmsieve/capture/pipeline.h"
#include "vmsieve/capture/save.h"
#include "vmsieve/disks/disk_point.h"
#include "vmsieve/qemu/frozen_file_systems.h"
#include "vmsieve/qemu/pause_guard.h"

namespace vmsieve {

/// Everything that one save needs, built up while the guest runs.
struct Save {
  AttachedVm vm;
  SaveOptions options;
  Manifest manifest;
  PauseParts pause;
  LiveReport live;
  TrackedReport tracked;
  std::vector<std::string> warnings;
  KernelSearch search;
  EarlierScan earlier;  ///< of page structures, made while a live save's protection sees what is written

  std::unique_ptr<FrozenFileSystems> frozen;  ///< for the pause
  std::optional<u64> frozen_file_systems;
  std::vector<WritableDisk> disks;
  std::unique_ptr<DiskPoint> disk_point;  ///< none where disks are left alone

  std::string blocks_text;  ///< `info ramblock` as it was when the layout was read

  const RamLayout& layout() const { return vm.memory->layout(); }
};

/// What is known of the guest's memory at the stop.
struct Classified {
  FreePages free;
  IntrospectionRecord record;
  double ran_ms = 0;  ///< the guest's own, between stops: it was stopped again at a better moment
};

/// What the pause yields.
struct Stopped {
  Classified classified;
  std::vector<std::byte> device_state;
};

/// Connects to the VM, refuses one that cannot be migrated, and records what a restore needs.
Result<void> attach_and_describe(Save& save, const VmAddress& address);

/// Memory that is gone reads as zeros, not as an error. So ask once all is read whether QEMU is still
/// there and still has the RAM blocks that were read (nothing was plugged or unplugged meanwhile).
Result<void> check_same_memory(Save& save);

/// Gets ready to take the instant of the disks, as the options say, with the guest running.
Result<void> prepare_disks(Save& save, const Store& store, CheckpointWriter& checkpoint);

/// After the instant, with the guest running again: what is to be known of the disks, and the objects that
/// hold copies of them.
Result<std::vector<ObjectRecord>> finish_disks(Save& save, CheckpointWriter& checkpoint,
                                               const ProgressFunction& progress);

/// Finds the guest's kernel, while it runs.
Result<void> find_kernel(Save& save);

/// Classifies once while the guest runs: the answer is worth nothing as a proof, but tells how much will be
/// read, and brings page tables and page structures into the host's caches (a cold first pass takes ten times
/// as long). In a live save the sections that are not written until the stop need not be read again.
Result<FreePages> rehearse(Save& save, unsigned threads);

/// Classifies the stopped guest. What is in doubt gets up to five more chances after the guest has run for a
/// while (the stop may have met the allocator in the middle of its work).
Result<Classified> classify_stopped(Save& save, PauseGuard& guard, unsigned threads);

/// Stops the guest, classifies, saves the device state and takes the disks' instant: how every pause begins.
/// The guest is stopped afterwards, also on failure.
Result<Stopped> stop_and_classify(Save& save, PauseGuard& guard, unsigned threads);

/// How every pause ends: the guest runs again, and its file systems are thawed.
Result<void> let_run(Save& save, PauseGuard& guard);

/// The complete index of every block: what was known without reading, what was read, and, of pages that hold
/// what they did, what `base` says; nullptr: none. `counts`: of all its pages.
Result<std::vector<BlockIndex>> build_index(const RamLayout& layout, const PagePlan& plan,
                                            CapturePipeline::Outcome& outcome, const CheckpointReader* base,
                                            MemoryObjectWriter& writer, PageCounts& counts);

Result<ObjectRecord> write_device_state(CheckpointWriter& checkpoint, std::span<const std::byte> state);

/// Tells the user how far the encoding is, until all is encoded or failed.
void report_writing(const CapturePipeline& pipeline, u64 pages, const ProgressFunction& progress);

}  // namespace vmsieve
