// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <span>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"

namespace vmsieve {

/// One level of a page-table tree.
struct PagingLevel {
  u32 shift = 0;       ///< one entry maps 2^shift bytes
  u32 index_bits = 0;  ///< a table has 2^index_bits entries of 8 bytes

  u64 entry_bytes() const { return u64{1} << shift; }
  u64 index(u64 address) const { return (address >> shift) & ((u64{1} << index_bits) - 1); }
};

/// An entry of a page table has 8 bytes, whatever the architecture.
inline constexpr u64 kPageTableEntryBytes = 8;

/// What an entry says.
struct PageTableEntry {
  enum class Kind : u8 {
    kAbsent,    ///< nothing is mapped
    kTable,     ///< `address` is the next table's
    kLeaf,      ///< `address` is that of a page as long as what the entry maps
    kReserved,  ///< a bit is set that must be clear
  };
  Kind kind = Kind::kAbsent;
  GuestPhysical address;
};

/// A kind of page tables as data: made by x86_page_tables() and arm64_page_tables(). The walk over it
/// (below) knows no architecture.
struct PageTableFormat {
  using Decode = PageTableEntry (*)(const PagingLevel& level, bool lowest, u64 raw);

  std::array<PagingLevel, 5> storage{};
  u32 depth = 0;  ///< levels in use, from the top: storage[0] to storage[depth - 1]
  /// All address bits from this one up are ones; zeros too when `lower_half` is translated.
  u32 extension_shift = 0;
  bool lower_half = false;
  Decode decode = nullptr;  ///< never kTable at the lowest level

  std::span<const PagingLevel> levels() const { return std::span{storage}.first(depth); }
};

/// Top of a page-table tree and how to walk it.
struct PageTableRoot {
  GuestPhysical top;
  PageTableFormat format;
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
Result<GuestPhysical> translate(const GuestMemory& memory, const PageTableRoot& root, GuestVirtual address);

/// Translates [address, address + bytes) into extents in virtual order, adjoining ones merged.
/// Errors as translate() gives for any byte of it; kDamaged also for more than kMaxTranslateBytes.
/// One read per 4 KiB of tables, so 2 MiB mapped by one large page cost 4 or 5 reads, mapped by 512
/// small pages one more. Pages need not be physically contiguous, and may be the same page several
/// times over (vmemmap under the hugetlb vmemmap optimization). The extents are not checked to be RAM.
Result<std::vector<PhysicalExtent>> translate_range(const GuestMemory& memory, const PageTableRoot& root,
                                                    GuestVirtual address, u64 bytes);

/// The table to which the top-level entry for `address` points; errors as for translate().
Result<GuestPhysical> top_level_table(const GuestMemory& memory, const PageTableRoot& root,
                                      GuestVirtual address);

/// Copies guest-virtual [address, address + out.size()) into `out`, which may cross pages; errors as
/// for translate_range(), and kDamaged when a page is outside RAM.
Result<void> read_virtual(const GuestMemory& memory, const PageTableRoot& root, GuestVirtual address,
                          std::span<std::byte> out);

}  // namespace vmsieve
