// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/page_tables.h"
#include "vmsieve/pages/page_layout.h"
#include "vmsieve/pages/struct_page_scan.h"

namespace vmsieve {

/// A struct pglist_data.
struct NodePlace {
  u32 id = 0;
  GuestVirtual address;

  friend bool operator==(const NodePlace&, const NodePlace&) = default;
};

/// Finds the nodes of a kernel that does not say where they are, from the ends of its free lists.
///
/// The free blocks of one order and migrate type of a zone are linked in a ring (list_add(),
/// include/linux/list.h) through the struct pages of their heads and through
/// zone.free_area[order].free_list[type], which is thus the only link outside of `memmap`, where the
/// struct pages are. Such a place is believed when every list of the zone that would be around it is
/// empty or leads into `memmap`, and the node that would be around that zone has sane numbers and only
/// such zones; and only when no other type or zone index fits as well. The rest is passed over: blocks
/// of a zone that was not found are then in no zone, a doubt for check E to state. kUnsupported when
/// no node is found, or the ends are more than any kernel's.
Result<std::vector<NodePlace>> find_nodes(const GuestMemory& memory, const PageTableRoot& tables,
                                          const PageLayout& layout, VirtualRange memmap,
                                          std::vector<FreeListEnd> ends);

}  // namespace vmsieve
