// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"
#include "vmsieve/qemu/process.h"

namespace vmsieve {

/// A run of guest page frames that are one thing: "free", "used", or "other" (not part of the
/// guest's main memory: video memory, firmware).
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
  u64 vcpus = 0;
  double find_ms = 0;
  double classify_ms = 0;
  std::vector<PfnClassRun> runs;  ///< ascending; every page frame of RAM exactly once
};

/// Looks at a VM without stopping it. While the guest runs its allocator may move under the look;
/// the look is repeated a few times until the guest's counters agree, else `exact` is false and
/// doubtful zones count as used.
Result<Inspection> inspect_vm(const VmAddress& address, unsigned threads);

}  // namespace vmsieve
