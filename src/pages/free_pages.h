// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/linux_kernel.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/pages/allocator_layout.h"
#include "vmsieve/pages/section_scan.h"

namespace vmsieve {

/// Kinds of free pages, each of which may be looked for or not.
struct FreeKinds {
  bool per_cpu = true;   ///< on the allocator's per-CPU lists
  bool hugetlb = true;   ///< in hugetlb pools
  bool offline = false;  ///< PageOffline: given to a balloon, or unplugged by virtio-mem
};

struct FindOptions {
  unsigned threads = 1;
  /// Where lists of free pages are; without it only what the buddy allocator flags is found. Read from
  /// the same kernel; must outlive the call.
  const AllocatorLayout* allocator = nullptr;
  FreeKinds kinds{};
  /// What an earlier call on the same kernel, with the same options, has found; afterwards what this one has.
  EarlierScan* earlier = nullptr;
};

/// Pages of the guest whose content nobody needs, each proved by checks D to H (docs/hazards.md).
struct FreePages {
  std::vector<PfnRange> runs;  ///< ascending, not overlapping, not adjacent, all RAM
  u64 count = 0;               ///< pages in `runs`
  u64 buddy = 0;               ///< of these: in the buddy allocator's blocks
  u64 per_cpu = 0;             ///< on per-CPU lists, and on those of blocks freed without a lock
  u64 hugetlb = 0;             ///< in hugetlb pools
  u64 offline = 0;             ///< PageOffline
  u64 described = 0;           ///< RAM pages that an online memory section describes (check H)

  /// One sentence per zone whose counters and flags disagree (check E) or that holds a malformed
  /// block (check F): nothing of that zone is in `runs`. Also one per section whose page structures
  /// cannot be read. Worth a retry after the guest has run a millisecond.
  std::vector<std::string> doubts;
  /// The same for lists of free pages. They change all the time, so another try is as likely to meet one in
  /// the middle of a change; their pages are saved.
  std::vector<std::string> list_doubts;

  /// What a skipped page must read as after a restore: when most of the sampled free pages are
  /// filled with one non-zero byte, as all are under page poisoning, that byte; else 0, as
  /// init_on_free needs. Without either the guest does not care.
  u8 fill = 0;
};

/// Finds the free pages. The guest must be stopped for the answer to be a proof; on a running
/// guest it is an estimate, and doubts are likely.
/// An error (never a partial answer) when the structures cannot be understood at all, or when
/// check D fails; the caller then saves every page.
Result<FreePages> find_free_pages(const GuestMemory& memory, const LinuxKernel& kernel,
                                  const FindOptions& options);

}  // namespace vmsieve
