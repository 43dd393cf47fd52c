// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/x86_paging.h"
#include "vmsieve/pages/memory_sections.h"
#include "vmsieve/pages/struct_page_scan.h"

namespace vmsieve {

/// What the struct pages of one section say.
struct ScannedSection {
  Pfn first;
  u64 ram_pages = 0;       ///< of the section; 0 when it could not be read
  SectionScan found;       ///< blocks lie wholly in RAM
  std::string unreadable;  ///< why it could not be read; then nothing was found in it

  Pfn pfn(const ScannedBlock& block) const { return Pfn{first.value + block.index()}; }
};

/// Scans the struct pages of all `sections` on `threads` threads, one result for each. A section whose
/// memory map the guest's own page tables do not give is `unreadable`; only failing to read the guest
/// is an error. Holds 4 bytes per free block and a buffer of about 256 KiB per thread.
Result<std::vector<ScannedSection>> scan_sections(const GuestMemory& memory, PageTableRoot tables,
                                                  const PageLayout& layout,
                                                  const std::vector<MemorySection>& sections,
                                                  unsigned threads);

}  // namespace vmsieve
