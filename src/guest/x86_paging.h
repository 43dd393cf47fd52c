// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
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

  friend constexpr bool operator==(const PhysicalExtent&, const PhysicalExtent&) = default;
};

/// The longest range that translate_range() takes.
inline constexpr u64 kMaxTranslateBytes = kGiB;

/// Walks the tables for one address. kNotFound when it is not mapped (or not canonical), kDamaged
/// when a table is outside RAM or has a bit set that must be clear. One read per level.
Result<GuestPhysical> translate(const GuestMemory& memory, PageTableRoot root, GuestVirtual address);

/// Translates [address, address + bytes) into extents in virtual order, adjoining ones merged.
/// Errors as translate() gives for any byte of it; kDamaged also for more than kMaxTranslateBytes.
/// One read per table, so 2 MiB mapped by one large page cost 4 or 5 reads, mapped by 512 small
/// pages one more. Pages need not be physically contiguous, and may be the same page several times
/// over (vmemmap under the hugetlb vmemmap optimization). The extents are not checked to be RAM.
Result<std::vector<PhysicalExtent>> translate_range(const GuestMemory& memory, PageTableRoot root,
                                                    GuestVirtual address, u64 bytes);

/// The table to which the top-level entry for `address` points; errors as for translate().
Result<GuestPhysical> top_level_table(const GuestMemory& memory, PageTableRoot root, GuestVirtual address);

/// Copies guest-virtual [address, address + out.size()) into `out`, which may cross pages; errors as
/// for translate_range(), and kDamaged when a page is outside RAM.
Result<void> read_virtual(const GuestMemory& memory, PageTableRoot root, GuestVirtual address,
                          std::span<std::byte> out);

}  // namespace vmsieve
