// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "support/fake_memory.h"
#include "vmsieve/guest/x86_paging.h"

namespace vmsieve::testing {

inline constexpr u64 kPresentBit = 1;
inline constexpr u64 kLargePageBit = 1 << 7;

/// x86-64 page tables in fake memory, written entry by entry from the Intel SDM, on purpose without
/// the code under test. Tables are taken from consecutive frames.
class FakeTables {
 public:
  /// The top-level table is at `top`, further ones at `next_table` and the frames behind it.
  FakeTables(FakeMemory& memory, u32 levels, Pfn top, Pfn next_table)
      : memory_(memory), root_{top.address(), levels}, next_table_(next_table.value) {}

  PageTableRoot root() const { return root_; }

  /// Maps one page of 4 KiB (page_shift 12), 2 MiB (21) or 1 GiB (30).
  void map(GuestVirtual address, GuestPhysical page, u32 page_shift) {
    GuestPhysical table = root_.top;
    for (u32 shift = 12 + 9 * (root_.levels - 1); shift > page_shift; shift -= 9) {
      const u64 entry = memory_.read_u64(entry_address(table, address, shift));
      if ((entry & kPresentBit) == 0) {
        const GuestPhysical fresh = Pfn{next_table_++}.address();
        // Bits that hardware or Linux sets and that are no part of the address: writable, accessed,
        // software bits, execute-disable.
        memory_.write_le(entry_address(table, address, shift), fresh.value | 0x8000'0000'0000'0063);
        table = fresh;
      } else {
        table = GuestPhysical{entry & 0x000f'ffff'ffff'f000};
      }
    }
    const u64 large = page_shift > 12 ? kLargePageBit : 0;
    memory_.write_le(entry_address(table, address, page_shift), page.value | large | 0x63);
  }

  void map_range(GuestVirtual address, GuestPhysical first, u64 bytes, u32 page_shift) {
    for (u64 done = 0; done < bytes; done += u64{1} << page_shift)
      map(address + done, first + done, page_shift);
  }

  /// Where the entry of `address` stands at the level whose entries map 2^shift bytes.
  GuestPhysical entry(GuestVirtual address, u32 shift) const {
    GuestPhysical table = root_.top;
    for (u32 s = 12 + 9 * (root_.levels - 1); s > shift; s -= 9) {
      table = GuestPhysical{memory_.read_u64(entry_address(table, address, s)) & 0x000f'ffff'ffff'f000};
    }
    return entry_address(table, address, shift);
  }

 private:
  static GuestPhysical entry_address(GuestPhysical table, GuestVirtual address, u32 shift) {
    return table + (address.value >> shift & 511) * 8;
  }

  FakeMemory& memory_;
  PageTableRoot root_;
  u64 next_table_;
};

}  // namespace vmsieve::testing
