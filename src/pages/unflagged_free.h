// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/pages/allocator_layout.h"
#include "vmsieve/pages/memory_sections.h"
#include "vmsieve/pages/page_layout.h"
#include "vmsieve/pages/section_scan.h"
#include "vmsieve/pages/zones.h"

namespace vmsieve {

/// Free pages that only a list knows of.
struct ListedPages {
  std::vector<PfnRange> runs;  ///< ascending, not overlapping, not adjacent, described RAM
  u64 count = 0;
  /// One sentence for each list that was not believed, the first 16: none of its pages is in `runs`. Lists
  /// change all the time, so this is no sign of anything but a stop in the middle of a change.
  std::vector<std::string> doubts;
};

/// What all walks share.
struct ListWalk {
  const GuestMemory& memory;
  PageTableRoot tables;
  const PageLayout& layout;
  const AllocatorLayout& allocator;
  const std::vector<MemorySection>& sections;
  const std::vector<ScannedSection>& scans;  ///< made with ScanWants::unlisted
};

/// Pages on the per-CPU lists of every zone (struct per_cpu_pages, mm/page_alloc.c), and blocks on the
/// zones' trylock lists. A list counts only when all of it holds: its lock is free; every link is one to a
/// page that the scan found unused, untyped and unflagged, with all pages of its block; every backward
/// link agrees; no page is met twice; and the pages of all lists of a CPU are exactly as many as its
/// counter says. Between taking a page from a list and counting it the kernel holds the CPU's lock, so a
/// stop there is a doubt.
ListedPages read_per_cpu_lists(const ListWalk& walk, const Zones& zones);

/// Pages of hugetlb pools that no file has (mm/hugetlb.c enqueue_hugetlb_folio()); they are cleared when a
/// fault takes one. A node's list counts only when hugetlb_lock is free, every link holds in both
/// directions, every head is unused and lies at a multiple of its length in described RAM, and there are
/// as many as free_huge_pages_node says.
ListedPages read_free_hugetlb(const ListWalk& walk);

}  // namespace vmsieve
