// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/x86_paging.h"

#include <algorithm>
#include <array>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

// What x86-64 is, as data; the walk below knows no numbers of its own.
struct PagingLevel {
  u32 shift;        // bytes that one entry maps, as a power of two
  u32 index_bits;   // entries of one table, as a power of two
  bool large_page;  // an entry may map a page itself

  u64 entry_bytes() const { return u64{1} << shift; }
  u64 index(u64 address) const { return (address >> shift) & ((u64{1} << index_bits) - 1); }
};

// Intel SDM volume 3, tables 4-14 to 4-20: PML5, PML4, PDPT, PD, PT.
constexpr std::array<PagingLevel, 5> kLevels{{
    {48, 9, false},
    {39, 9, false},
    {30, 9, true},
    {21, 9, true},
    {12, 9, false},
}};
constexpr u64 kPresent = u64{1} << 0;
constexpr u64 kLargePage = u64{1} << 7;  // PS; reserved above the PDPT, PAT in the PT
constexpr u64 kAddressMask = 0x000f'ffff'ffff'f000;
constexpr u64 kEntryBytes = 8;
constexpr u64 kTableEntries = 512;

std::span<const PagingLevel> levels_of(PageTableRoot root) {
  VMSIEVE_CHECK(root.levels == 4 || root.levels == 5);
  return std::span{kLevels}.last(root.levels);
}

// All bits above the tables' reach are copies of the topmost bit that the tables decode.
bool canonical(std::span<const PagingLevel> levels, u64 address) {
  const u64 above = address >> (levels.front().shift + levels.front().index_bits - 1);
  return above == 0 || above == ~u64{0} >> (levels.front().shift + levels.front().index_bits - 1);
}

struct Entry {
  bool leaf = false;
  GuestPhysical address;  // the page's, or the next table's
};

Result<Entry> decode_entry(const PagingLevel& level, u64 raw, u64 address) {
  if ((raw & kPresent) == 0) {
    return make_error(ErrorKind::kNotFound, "guest-virtual {:#x} is not mapped", address);
  }
  const bool lowest = level.shift == kLevels.back().shift;
  if (!lowest && (raw & kLargePage) != 0 && !level.large_page) {
    return make_error(ErrorKind::kDamaged,
                      "page-table entry {:#x} for guest-virtual {:#x} has a reserved bit set", raw, address);
  }
  if (lowest || (raw & kLargePage) != 0) {
    return Entry{true, GuestPhysical{raw & kAddressMask & ~(level.entry_bytes() - 1)}};
  }
  return Entry{false, GuestPhysical{raw & kAddressMask}};
}

Result<void> read_entries(const GuestMemory& memory, GuestPhysical table, u64 first, std::span<u64> entries,
                          u64 address) {
  std::array<std::byte, kTableEntries * kEntryBytes> bytes;
  const std::span wanted = std::span{bytes}.first(entries.size() * kEntryBytes);
  const auto read = memory.read(table + first * kEntryBytes, wanted);
  if (!read.ok()) {
    return read.error().with_context(
        fmt::format("reading the page table at {:#x} for guest-virtual {:#x}", table.value, address));
  }
  for (std::size_t i = 0; i < entries.size(); ++i) entries[i] = load_le<u64>(&bytes[i * kEntryBytes]);
  return {};
}

Result<Entry> read_entry(const GuestMemory& memory, const PagingLevel& level, GuestPhysical table,
                         u64 address) {
  u64 raw = 0;
  VMSIEVE_TRY(read_entries(memory, table, level.index(address), std::span{&raw, 1}, address));
  return decode_entry(level, raw, address);
}

Result<void> check_range(std::span<const PagingLevel> levels, u64 address, u64 bytes) {
  if (bytes > kMaxTranslateBytes) {
    return make_error(ErrorKind::kDamaged,
                      "guest-virtual {:#x}, {:#x} bytes: longer than any kernel structure", address, bytes);
  }
  const u64 last = address + bytes - 1;
  if (last < address || !canonical(levels, address) || !canonical(levels, last) ||
      (address >> 63) != (last >> 63)) {
    return make_error(ErrorKind::kNotFound, "guest-virtual {:#x}, {:#x} bytes: not a canonical range",
                      address, bytes);
  }
  return {};
}

void append_extent(std::vector<PhysicalExtent>& extents, GuestPhysical address, u64 bytes) {
  if (!extents.empty() && extents.back().address + extents.back().bytes == address) {
    extents.back().bytes += bytes;
  } else {
    extents.push_back({address, bytes});
  }
}

// Appends the extents of [address, address + bytes), all of it under one table at `levels.front()`.
Result<void> walk_table(const GuestMemory& memory, std::span<const PagingLevel> levels, GuestPhysical table,
                        u64 address, u64 bytes, std::vector<PhysicalExtent>& extents) {
  const PagingLevel& level = levels.front();
  const u64 first = level.index(address);
  std::array<u64, kTableEntries> storage;
  const std::span entries = std::span{storage}.first(level.index(address + bytes - 1) - first + 1);
  VMSIEVE_TRY(read_entries(memory, table, first, entries, address));
  for (const u64 raw : entries) {
    const u64 inside = address & (level.entry_bytes() - 1);
    const u64 piece = std::min(bytes, level.entry_bytes() - inside);
    VMSIEVE_ASSIGN(const Entry entry, decode_entry(level, raw, address));
    if (entry.leaf) {
      append_extent(extents, entry.address + inside, piece);
    } else {
      VMSIEVE_TRY(walk_table(memory, levels.subspan(1), entry.address, address, piece, extents));
    }
    address += piece;
    bytes -= piece;
  }
  return {};
}

}  // namespace

Result<GuestPhysical> translate(const GuestMemory& memory, PageTableRoot root, GuestVirtual address) {
  const auto levels = levels_of(root);
  VMSIEVE_TRY(check_range(levels, address.value, 1));
  GuestPhysical table = root.top;
  for (const PagingLevel& level : levels) {
    VMSIEVE_ASSIGN(const Entry entry, read_entry(memory, level, table, address.value));
    if (entry.leaf) return entry.address + (address.value & (level.entry_bytes() - 1));
    table = entry.address;
  }
  VMSIEVE_CHECK(false);  // the lowest level has only leaves
}

Result<std::vector<PhysicalExtent>> translate_range(const GuestMemory& memory, PageTableRoot root,
                                                    GuestVirtual address, u64 bytes) {
  std::vector<PhysicalExtent> extents;
  if (bytes == 0) return extents;
  const auto levels = levels_of(root);
  VMSIEVE_TRY(check_range(levels, address.value, bytes));
  VMSIEVE_TRY(walk_table(memory, levels, root.top, address.value, bytes, extents));
  return extents;
}

Result<GuestPhysical> top_level_table(const GuestMemory& memory, PageTableRoot root, GuestVirtual address) {
  const auto levels = levels_of(root);
  VMSIEVE_TRY(check_range(levels, address.value, 1));
  VMSIEVE_ASSIGN(const Entry entry, read_entry(memory, levels.front(), root.top, address.value));
  return entry.address;
}

Result<void> read_virtual(const GuestMemory& memory, PageTableRoot root, GuestVirtual address,
                          std::span<std::byte> out) {
  VMSIEVE_ASSIGN(const auto extents, translate_range(memory, root, address, out.size()));
  for (const PhysicalExtent& extent : extents) {
    VMSIEVE_TRY(memory.read(extent.address, out.first(extent.bytes)));
    out = out.subspan(extent.bytes);
  }
  return {};
}

}  // namespace vmsieve
