// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/page_tables.h"
#include "vmsieve/pages/memory_sections.h"
#include "vmsieve/pages/struct_page_scan.h"

namespace vmsieve {

/// 24 bytes each. Per-CPU lists hold an eighth of a zone at the very most (mm/page_alloc.c zone_highsize()).
inline constexpr u64 kMaxUnlistedPages = u64{1} << 20;

/// What the struct pages of one section say.
struct ScannedSection {
  Pfn first;
  u64 frame_shift = 0;                  ///< PageLayout::frame_shift()
  u64 ram_frames = 0;                   ///< frames of RAM in the section; 0 when it could not be read
  SectionScan found;                    ///< blocks lie wholly in RAM
  std::string unreadable;               ///< why it could not be read; then nothing was found in it
  std::vector<PhysicalExtent> extents;  ///< where its struct pages were read

  Pfn pfn(const ScannedBlock& block) const { return Pfn{first.value + (block.index() << frame_shift)}; }
};

/// A scan that a later one of the same kernel may take over in part: a section whose struct pages are where
/// they were, and of which none was written since before the earlier scan began, is as it was.
struct EarlierScan {
  std::vector<ScannedSection> scans;  ///< ascending; empty: nothing to take over
  /// Was nothing in this memory written since then? Missing: no. Called by several threads.
  std::function<bool(const PhysicalExtent&)> unwritten;
  u64 reused = 0;  ///< sections that the last scan took over
};

/// The smallest range that holds the struct pages of all `sections`.
VirtualRange memmap_range(const PageLayout& layout, const std::vector<MemorySection>& sections);

/// Scans the struct pages of all `sections` on `threads` threads, one result for each. A section whose
/// memory map the guest's own page tables do not give is `unreadable`; only failing to read the guest
/// is an error. Holds 4 bytes per free block and a buffer of about 2 MiB per thread.
/// Of unlisted pages kMaxUnlistedPages are kept in all, whatever the guest shows. What `earlier` has, if it
/// is given, must be of a scan with the same `layout`, `sections` and `wants`.
Result<std::vector<ScannedSection>> scan_sections(const GuestMemory& memory, const PageTableRoot& tables,
                                                  const PageLayout& layout,
                                                  const std::vector<MemorySection>& sections, ScanWants wants,
                                                  unsigned threads, EarlierScan* earlier = nullptr);

}  // namespace vmsieve
