// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/x86_paging.h"

#include <algorithm>

namespace vmsieve {
namespace {

// Intel SDM volume 3, tables 4-14 to 4-20: PML5, PML4, PDPT, PD, PT.
constexpr std::array<PagingLevel, 5> kLevels{{{48, 9}, {39, 9}, {30, 9}, {21, 9}, {12, 9}}};
constexpr u32 kLargestPageShift = 30;  // PDPT entries may map pages, those above not
constexpr u64 kPresent = u64{1} << 0;
constexpr u64 kPageSizeBit = u64{1} << 7;  // PS; reserved above the PDPT, PAT in the PT
constexpr u64 kAddressMask = 0x000f'ffff'ffff'f000;

PageTableEntry decode(const PagingLevel& level, bool lowest, u64 raw) {
  using Kind = PageTableEntry::Kind;
  if ((raw & kPresent) == 0) return {Kind::kAbsent, {}};
  const bool large = (raw & kPageSizeBit) != 0;
  if (lowest || (large && level.shift <= kLargestPageShift)) {
    return {Kind::kLeaf, GuestPhysical{raw & kAddressMask & ~(level.entry_bytes() - 1)}};
  }
  if (large) return {Kind::kReserved, {}};
  return {Kind::kTable, GuestPhysical{raw & kAddressMask}};
}

}  // namespace

PageTableRoot x86_page_tables(GuestPhysical top, u32 levels) {
  VMSIEVE_CHECK(levels == 4 || levels == 5);
  PageTableFormat format;
  std::copy(kLevels.end() - levels, kLevels.end(), format.storage.begin());
  format.depth = levels;
  // The topmost bit that the tables decode is repeated above it.
  const PagingLevel& highest = format.storage.front();
  format.extension_shift = highest.shift + highest.index_bits - 1;
  format.lower_half = true;
  format.decode = decode;
  return {top, format};
}

}  // namespace vmsieve
