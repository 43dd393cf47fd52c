// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/arm64_paging.h"

#include <algorithm>

namespace vmsieve {
namespace {

constexpr u32 kEntryShift = 3;  // entries of 8 bytes
// Arm ARM D8.3.1, bits 1:0 of a descriptor.
constexpr u64 kValid = 1;
constexpr u64 kTableOrPage = 2;

// Bits a to b, both inclusive.
constexpr u64 bits(u32 a, u32 b) { return (~u64{0} >> (63 - b)) & (~u64{0} << a); }

// The output address of a descriptor: bits 47 down to the granule as they are, the rest elsewhere.
template <u32 PAGE_SHIFT, bool LPA2>
constexpr u64 output_address(u64 raw) {
  u64 address = raw & bits(PAGE_SHIFT, 47);
  // FEAT_LPA: 51:48 in 15:12, which must be zero without it.
  if (PAGE_SHIFT == 16) address |= (raw & bits(12, 15)) << 36;
  // FEAT_LPA2: 49:48 in their place, 51:50 in 9:8, which are shareability without it.
  if (LPA2) address |= (raw & bits(48, 49)) | (raw & bits(8, 9)) << 42;
  return address;
}

// The longest block, as a power of two: 1 GiB, 32 MiB, 512 MiB, and the level above with wider output
// addresses (Arm ARM table D8-16: 512 GiB, 64 GiB, 4 TiB).
template <u32 PAGE_SHIFT, bool LPA2>
constexpr u32 longest_block_shift() {
  if (PAGE_SHIFT == 12) return LPA2 ? 39 : 30;
  if (PAGE_SHIFT == 14) return LPA2 ? 36 : 25;
  return 42;
}

template <u32 PAGE_SHIFT, bool LPA2>
PageTableEntry decode(const PagingLevel& level, bool lowest, u64 raw) {
  using Kind = PageTableEntry::Kind;
  if ((raw & kValid) == 0) return {Kind::kAbsent, {}};
  const bool table_or_page = (raw & kTableOrPage) != 0;
  const u64 address = output_address<PAGE_SHIFT, LPA2>(raw);
  if (table_or_page && !lowest) return {Kind::kTable, GuestPhysical{address}};
  const bool page = table_or_page && lowest;
  const bool block = !table_or_page && !lowest && level.shift <= longest_block_shift<PAGE_SHIFT, LPA2>();
  if (!page && !block) return {Kind::kReserved, {}};
  return {Kind::kLeaf, GuestPhysical{address & ~(level.entry_bytes() - 1)}};
}

PageTableFormat::Decode decode_of(const Arm64Translation& translation) {
  switch (translation.page_shift) {
    case 12: return translation.lpa2 ? decode<12, true> : decode<12, false>;
    case 14: return translation.lpa2 ? decode<14, true> : decode<14, false>;
    default: return decode<16, false>;
  }
}

}  // namespace

bool Arm64Translation::possible() const {
  if (page_shift != 12 && page_shift != 14 && page_shift != 16) return false;
  if (lpa2 && page_shift == 16) return false;
  const u32 limit = lpa2 || page_shift == 16 ? 52 : 48;
  return va_bits >= 25 && va_bits <= limit;
}

PageTableRoot arm64_page_tables(GuestPhysical top, const Arm64Translation& translation) {
  VMSIEVE_CHECK(translation.possible());
  const u32 full_bits = translation.page_shift - kEntryShift;
  PageTableFormat format;
  // From the lowest level up; the top table has what is left of the address.
  u32 shift = translation.page_shift;
  for (; shift < translation.va_bits; shift += full_bits) {
    format.storage[format.depth++] = {shift, std::min(full_bits, translation.va_bits - shift)};
  }
  std::reverse(format.storage.begin(), format.storage.begin() + format.depth);
  format.extension_shift = translation.va_bits;
  format.lower_half = false;
  format.decode = decode_of(translation);
  return {top, format};
}

u64 arm64_top_table_bytes(const Arm64Translation& translation) {
  const auto root = arm64_page_tables({}, translation);
  return u64{1} << (root.format.storage.front().index_bits + kEntryShift);
}

}  // namespace vmsieve
