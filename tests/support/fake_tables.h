// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "support/fake_memory.h"
#include "vmsieve/guest/arm64_paging.h"
#include "vmsieve/guest/x86_paging.h"

namespace vmsieve::testing {

inline constexpr u64 kPresentBit = 1;
inline constexpr u64 kLargePageBit = 1 << 7;

/// Page tables in fake memory, written entry by entry from the Intel SDM and the Arm ARM, on purpose
/// without the code under test. Tables are taken from consecutive frames.
class FakeTables {
 public:
  /// x86-64: the top-level table is at `top`, further ones at `next_table` and the frames behind it.
  FakeTables(FakeMemory& memory, u32 levels, Pfn top, Pfn next_table)
      : memory_(memory),
        root_(x86_page_tables(top.address(), levels)),
        next_table_(next_table.value),
        va_bits_(12 + 9 * levels) {}

  /// arm64. `next_table` must be aligned to the granule.
  FakeTables(FakeMemory& memory, const Arm64Translation& translation, Pfn top, Pfn next_table)
      : memory_(memory),
        root_(arm64_page_tables(top.address(), translation)),
        next_table_(next_table.value),
        va_bits_(translation.va_bits),
        page_shift_(translation.page_shift),
        arm64_(true),
        lpa2_(translation.lpa2) {}

  const PageTableRoot& root() const { return root_; }

  /// Maps what one entry of some level maps: x86 4 KiB (page_shift 12), 2 MiB (21) or 1 GiB (30).
  void map(GuestVirtual address, GuestPhysical page, u32 page_shift) {
    GuestPhysical table = root_.top;
    for (u32 shift = top_shift(); shift > page_shift; shift -= step()) {
      const u64 entry = memory_.read_u64(entry_address(table, address, shift));
      if ((entry & kPresentBit) == 0) {
        const GuestPhysical fresh = Pfn{next_table_}.address();
        next_table_ += u64{1} << (page_shift_ - kPageShift);
        memory_.write_le(entry_address(table, address, shift), table_entry(fresh));
        table = fresh;
      } else {
        table = address_in(entry);
      }
    }
    memory_.write_le(entry_address(table, address, page_shift), leaf_entry(page, page_shift > page_shift_));
  }

  void map_range(GuestVirtual address, GuestPhysical first, u64 bytes, u32 page_shift) {
    for (u64 done = 0; done < bytes; done += u64{1} << page_shift)
      map(address + done, first + done, page_shift);
  }

  /// Where the entry of `address` stands at the level whose entries map 2^shift bytes.
  GuestPhysical entry(GuestVirtual address, u32 shift) const {
    GuestPhysical table = root_.top;
    for (u32 s = top_shift(); s > shift; s -= step()) {
      table = address_in(memory_.read_u64(entry_address(table, address, s)));
    }
    return entry_address(table, address, shift);
  }

 private:
  u32 step() const { return page_shift_ - 3; }
  u32 top_shift() const { return page_shift_ + (va_bits_ - page_shift_ - 1) / step() * step(); }
  GuestPhysical entry_address(GuestPhysical table, GuestVirtual address, u32 shift) const {
    const u32 index_bits = std::min(step(), va_bits_ - shift);
    return table + (address.value >> shift & ((u64{1} << index_bits) - 1)) * 8;
  }
  GuestPhysical address_in(u64 entry) const {
    if (!arm64_) return GuestPhysical{entry & 0x000f'ffff'ffff'f000};
    u64 address = entry & 0x0000'ffff'ffff'ffff & ~((u64{1} << page_shift_) - 1);
    if (page_shift_ == 16) address |= (entry >> 12 & 0xf) << 48;
    if (lpa2_) address |= (entry & 0x0003'0000'0000'0000) | (entry >> 8 & 3) << 50;
    return GuestPhysical{address};
  }
  // With bits that hardware or Linux sets and that are no part of the address: writable, accessed,
  // shareable (where that is no address bit), software bits, execute-never.
  u64 encode(GuestPhysical address, u64 attributes) const {
    if (page_shift_ == 16)
      return (address.value & 0xffff'ffff'0000) | (address.value >> 48) << 12 | attributes;
    if (!lpa2_) return address.value | attributes | (arm64_ ? 0x300 : 0);
    return (address.value & 0x0003'ffff'ffff'ffff) | (address.value >> 50) << 8 | attributes;
  }
  u64 table_entry(GuestPhysical table) const {
    return encode(table, arm64_ ? 0x1800'0000'0000'0003 : 0x8000'0000'0000'0063);
  }
  u64 leaf_entry(GuestPhysical page, bool large) const {
    if (arm64_) return encode(page, 0x0068'0000'0000'0400 | (large ? 1 : 3));
    return page.value | (large ? kLargePageBit : 0) | 0x63;
  }

  FakeMemory& memory_;
  PageTableRoot root_;
  u64 next_table_;
  u32 va_bits_;
  u32 page_shift_ = 12;
  bool arm64_ = false;
  bool lpa2_ = false;
};

}  // namespace vmsieve::testing
