// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/page_tables.h"

namespace vmsieve {

/// What a range of addresses is mapped to, one call for each page that is mapped, whatever its length:
/// `visit(virtual address, extent)`. And one for each page table that was read, if `table` is given:
/// `table(its address, whether it is a lowest one)`.
struct MappingVisitor {
  std::function<void(GuestVirtual, PhysicalExtent)> page;
  std::function<void(GuestPhysical, bool)> table;
};

/// Walks the tables of `root` for [first, last], as far as one tree reaches from `first`. At most
/// `max_tables` tables are read, so that tables which lead back to themselves end; false when that was not
/// enough. Entries that make no sense are passed over.
bool walk_mappings(const GuestMemory& memory, const PageTableRoot& root, GuestVirtual first,
                   GuestVirtual last, u64 max_tables, const MappingVisitor& visitor);

}  // namespace vmsieve
