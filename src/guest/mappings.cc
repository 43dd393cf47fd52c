// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/mappings.h"

#include <array>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

// Intel SDM volume 3, section 4.5.
constexpr u64 kPresent = 1;
constexpr u64 kLarge = u64{1} << 7;
constexpr u64 kAddress = 0x000f'ffff'ffff'f000;
constexpr u64 kEntries = 512;
constexpr u32 kBitsPerLevel = 9;

class Walk {
 public:
  Walk(const GuestMemory& memory, GuestVirtual first, GuestVirtual last, u64 max_tables,
       const MappingVisitor& visitor)
      : memory_(memory), first_(first.value), last_(last.value), left_(max_tables), visitor_(visitor) {}

  // `begin` is the first address that the table covers. False when the limit is reached.
  bool table(GuestPhysical at, u32 level, u64 begin) {
    if (left_ == 0) return false;
    --left_;
    std::array<std::byte, kPageSize> bytes;
    if (!memory_.read(at, bytes).ok()) return true;
    if (visitor_.table) visitor_.table(at, level);
    const u32 shift = static_cast<u32>(kPageShift) + kBitsPerLevel * (level - 1);
    const u64 span = u64{1} << shift;
    for (u64 i = 0; i < kEntries; ++i) {
      const u64 from = begin + i * span;
      if (from > last_) break;
      if (from + (span - 1) < first_) continue;
      const u64 entry = load_le<u64>(&bytes[i * 8]);
      if ((entry & kPresent) == 0) continue;
      const GuestPhysical target{entry & kAddress};
      const bool leaf = level == 1 || ((entry & kLarge) != 0 && level <= 3);
      if (leaf) {
        // In a large page's entry the bit above the flags is an attribute, not part of the address.
        if (visitor_.page)
          visitor_.page(GuestVirtual{from}, {GuestPhysical{target.value & ~(span - 1)}, span});
      } else if (!table(target, level - 1, from)) {
        return false;
      }
    }
    return true;
  }

 private:
  const GuestMemory& memory_;
  const u64 first_;
  const u64 last_;
  u64 left_;
  const MappingVisitor& visitor_;
};

}  // namespace

bool walk_mappings(const GuestMemory& memory, PageTableRoot root, GuestVirtual first, GuestVirtual last,
                   u64 max_tables, const MappingVisitor& visitor) {
  // Only x86-64's have both halves of the address space in one tree.
  if (last < first || !root.format.lower_half) return true;
  // The upper half begins where the sign extension does; its entries are the upper half of the top table.
  const u32 bits = static_cast<u32>(kPageShift) + kBitsPerLevel * root.format.depth;
  const bool upper = (first.value >> 63) != 0;
  const u64 begin = upper ? ~u64{0} << bits : 0;
  return Walk(memory, first, last, max_tables, visitor).table(root.top, root.format.depth, begin);
}

}  // namespace vmsieve
