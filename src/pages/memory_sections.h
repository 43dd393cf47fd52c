// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/page_tables.h"
#include "vmsieve/pages/page_layout.h"

namespace vmsieve {

/// A memory section whose struct pages are all there (check H).
struct MemorySection {
  Pfn first;            ///< its first page frame
  GuestVirtual memmap;  ///< struct page of the page at `first`; those of the section follow it
};

/// The sections that hold RAM and that the kernel describes: present, with a memory map, online, and
/// either from boot (their memory map is complete, mm/sparse.c) or hot-added with every subsection in
/// place. All others are passed over, so that their pages are saved. Ascending. Looks at no section
/// without RAM, so the work is bounded by the machine, not by what the guest says. kUnsupported when
/// none is found.
Result<std::vector<MemorySection>> read_memory_sections(const GuestMemory& memory,
                                                        const PageTableRoot& tables,
                                                        const PageLayout& layout);

}  // namespace vmsieve
