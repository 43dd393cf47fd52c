// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"

namespace vmsieve {

/// Top of an x86-64 page-table tree (Intel SDM volume 3, section 4.5): 4 or 5 levels.
struct PageTableRoot {
  GuestPhysical top;
  u32 levels = 4;
};

/// Guest-physical bytes [address, address + bytes).
struct PhysicalExtent {
  GuestPhysical address;
  u64 bytes = 0;
};

/// Walks the tables for one address. kNotFound when it is not mapped (or not canonical), kDamaged
/// when a table is outside RAM.
Result<GuestPhysical> translate(const GuestMemory& memory, PageTableRoot root, GuestVirtual address);

/// Translates [address, address + bytes) into extents in virtual order, adjoining ones merged.
/// The walk is bounded by the length asked for.
Result<std::vector<PhysicalExtent>> translate_range(const GuestMemory& memory, PageTableRoot root,
                                                    GuestVirtual address, u64 bytes);

}  // namespace vmsieve
