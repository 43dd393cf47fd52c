// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/linux_kernel.h"
#include "vmsieve/guest/memory.h"

namespace vmsieve {

/// Pages that the guest's buddy allocator holds as free, each proved by checks D, E, F and H
/// (docs/hazards.md).
struct FreePages {
  std::vector<PfnRange> runs;  ///< ascending, not overlapping, not adjacent, all RAM
  u64 count = 0;               ///< pages in `runs`
  u64 described = 0;           ///< RAM pages that an online memory section describes (check H)

  /// One sentence per zone whose counters and flags disagree (check E) or that holds a malformed
  /// block (check F): nothing of that zone is in `runs`. Also one per section whose page structures
  /// cannot be read. Worth a retry after the guest has run a millisecond.
  std::vector<std::string> doubts;

  /// What a skipped page must read as after a restore: when most of the sampled free pages are
  /// filled with one non-zero byte, as all are under page poisoning, that byte; else 0, as
  /// init_on_free needs. Without either the guest does not care.
  u8 fill = 0;
};

/// Finds the free pages. The guest must be stopped for the answer to be a proof; on a running
/// guest it is an estimate, and doubts are likely. `threads` workers read page structures.
/// An error (never a partial answer) when the structures cannot be understood at all, or when
/// check D fails; the caller then saves every page.
Result<FreePages> find_free_pages(const GuestMemory& memory, const LinuxKernel& kernel, unsigned threads);

}  // namespace vmsieve
