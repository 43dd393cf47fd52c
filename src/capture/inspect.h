// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"
#include "vmsieve/guest/processes.h"
#include "vmsieve/pages/page_classes.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve {

/// A run of guest page frames that are one thing: a PageClass by name; where classes are not known,
/// "free" or "used"; "other" for what is not part of the guest's main memory (video memory, firmware).
struct PfnClassRun {
  u64 first_pfn = 0;
  u64 count = 0;
  std::string name;
};

/// Where the memory of a running guest is.
struct Inspection {
  std::string vm_name;
  u64 pid = 0;
  std::string qmp_path;
  std::string accelerator;
  bool running = false;
  std::string kernel;   ///< empty when none was found
  std::string reason;   ///< why there is no figure for free memory, or which zones are doubtful
  bool exact = false;   ///< the kernel's own counters agreed with what was found, page by page
  u64 total_bytes = 0;  ///< of the guest's main memory
  u64 free_bytes = 0;
  u64 used_bytes = 0;  ///< total_bytes - free_bytes
  /// Of free_bytes, in pages: what they are free as. All zero for a checkpoint that does not say.
  FreeKindCounts free_pages;
  u64 vcpus = 0;
  bool paused = false;  ///< the guest was stopped for the look
  double pause_ms = 0;
  double find_ms = 0;
  double classify_ms = 0;
  /// What the used memory is used for; none when the kernel's types do not show it.
  std::optional<PageClasses> classes;
  std::string no_classes;               ///< why there are none
  std::vector<GuestProcess> processes;  ///< with the most resident memory first, no kernel threads
  u64 process_count = 0;                ///< of all, kernel threads not counted
  std::vector<PfnClassRun> runs;        ///< ascending; every page frame of RAM exactly once
};

struct InspectOptions {
  unsigned threads = 0;      ///< 0: one for each core
  bool pause = false;        ///< stop the guest for the look, so that all figures are of one moment
  bool classes = true;       ///< also what the used memory is used for
  std::size_t largest = 10;  ///< processes and files to name
};

/// Looks at a VM, by default without stopping it. While the guest runs its allocator may move under the
/// look; the look is repeated a few times until the guest's counters agree, else `exact` is false and
/// doubtful zones count as used.
Result<Inspection> inspect_vm(const VmAddress& address, const InspectOptions& options);

/// The same for the memory of a checkpoint. `pid`, `qmp_path` and times are empty.
Result<Inspection> inspect_checkpoint(const CheckpointReader& checkpoint, const InspectOptions& options);

}  // namespace vmsieve
