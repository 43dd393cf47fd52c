// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/page_tables.h"

namespace vmsieve {

/// What a range of addresses is mapped to, one call for each page that is mapped (4 KiB, 2 MiB or 1 GiB):
/// `visit(virtual address, extent)`. And one for each page table that was read, if `table` is given:
/// `table(its address, its level)`, 1 for the table of 4 KiB pages.
struct MappingVisitor {
  std::function<void(GuestVirtual, PhysicalExtent)> page;
  std::function<void(GuestPhysical, u32)> table;
};

/// Walks the x86-64 tables of `root` (others have no mappings here) for [first, last], both in one half of
/// the address space. At most `max_tables` tables are read, so that tables which lead back to themselves end;
/// false when that was not enough. Entries that make no sense are passed over.
bool walk_mappings(const GuestMemory& memory, PageTableRoot root, GuestVirtual first, GuestVirtual last,
                   u64 max_tables, const MappingVisitor& visitor);

}  // namespace vmsieve
