// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/mappings.h"

#include <vector>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

class Walk {
 public:
  Walk(const GuestMemory& memory, const PageTableFormat& format, GuestVirtual first, GuestVirtual last,
       u64 max_tables, const MappingVisitor& visitor)
      : memory_(memory),
        format_(format),
        first_(first.value),
        last_(last.value),
        left_(max_tables),
        visitor_(visitor) {}

  // `begin` is the first address that the table covers. False when the limit is reached.
  bool table(GuestPhysical at, u32 depth, u64 begin) {
    if (left_ == 0) return false;
    --left_;
    const PagingLevel& level = format_.storage[depth];
    const bool lowest = depth + 1 == format_.depth;
    std::vector<std::byte> bytes(kPageTableEntryBytes << level.index_bits);
    if (!memory_.read(at, bytes).ok()) return true;
    if (visitor_.table) visitor_.table(at, lowest);
    const u64 span = level.entry_bytes();
    for (u64 i = 0; i < bytes.size() / kPageTableEntryBytes; ++i) {
      const u64 from = begin + i * span;
      if (from > last_) break;
      if (from + (span - 1) < first_) continue;
      const PageTableEntry entry =
          format_.decode(level, lowest, load_le<u64>(&bytes[i * kPageTableEntryBytes]));
      if (entry.kind == PageTableEntry::Kind::kLeaf) {
        if (visitor_.page) visitor_.page(GuestVirtual{from}, {entry.address, span});
      } else if (entry.kind == PageTableEntry::Kind::kTable && !lowest) {
        if (!table(entry.address, depth + 1, from)) return false;
      }
    }
    return true;
  }

 private:
  const GuestMemory& memory_;
  const PageTableFormat& format_;
  const u64 first_;
  const u64 last_;
  u64 left_;
  const MappingVisitor& visitor_;
};

}  // namespace

bool walk_mappings(const GuestMemory& memory, const PageTableRoot& root, GuestVirtual first,
                   GuestVirtual last, u64 max_tables, const MappingVisitor& visitor) {
  if (last < first || root.format.depth == 0) return true;
  const PagingLevel& top = root.format.storage.front();
  const u32 bits = top.shift + top.index_bits;
  const u64 begin = bits < 64 ? first.value >> bits << bits : 0;
  return Walk(memory, root.format, first, last, max_tables, visitor).table(root.top, 0, begin);
}

}  // namespace vmsieve
