// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/page_tables.h"

#include <algorithm>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

constexpr u64 kReadEntries = 512;  // entries that one read brings: a table of 4 KiB, a part of a longer one

bool canonical(const PageTableFormat& format, u64 address) {
  const u64 above = address >> format.extension_shift;
  return above == ~u64{0} >> format.extension_shift || (format.lower_half && above == 0);
}

Result<PageTableEntry> decode_entry(const PageTableFormat& format, u32 depth, u64 raw, u64 address) {
  const PageTableEntry entry = format.decode(format.storage[depth], depth + 1 == format.depth, raw);
  if (entry.kind == PageTableEntry::Kind::kAbsent) {
    return make_error(ErrorKind::kNotFound, "guest-virtual {:#x} is not mapped", address);
  }
  if (entry.kind == PageTableEntry::Kind::kReserved) {
    return make_error(ErrorKind::kDamaged,
                      "page-table entry {:#x} for guest-virtual {:#x} has a reserved bit set", raw, address);
  }
  return entry;
}

Result<void> read_entries(const GuestMemory& memory, GuestPhysical table, u64 first, std::span<u64> entries,
                          u64 address) {
  std::array<std::byte, kReadEntries * kPageTableEntryBytes> bytes;
  const std::span wanted = std::span{bytes}.first(entries.size() * kPageTableEntryBytes);
  const auto read = memory.read(table + first * kPageTableEntryBytes, wanted);
  if (!read.ok()) {
    return read.error().with_context(
        fmt::format("reading the page table at {:#x} for guest-virtual {:#x}", table.value, address));
  }
  for (std::size_t i = 0; i < entries.size(); ++i)
    entries[i] = load_le<u64>(&bytes[i * kPageTableEntryBytes]);
  return {};
}

Result<PageTableEntry> read_entry(const GuestMemory& memory, const PageTableFormat& format, u32 depth,
                                  GuestPhysical table, u64 address) {
  u64 raw = 0;
  VMSIEVE_TRY(read_entries(memory, table, format.storage[depth].index(address), std::span{&raw, 1}, address));
  return decode_entry(format, depth, raw, address);
}

Result<void> check_range(const PageTableFormat& format, u64 address, u64 bytes) {
  VMSIEVE_CHECK(format.depth > 0 && format.decode != nullptr);
  if (bytes > kMaxTranslateBytes) {
    return make_error(ErrorKind::kDamaged,
                      "guest-virtual {:#x}, {:#x} bytes: longer than any kernel structure", address, bytes);
  }
  const u64 last = address + bytes - 1;
  if (last < address || !canonical(format, address) || !canonical(format, last) ||
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

// Appends the extents of [address, address + bytes), all of it under one table at level `depth`.
Result<void> walk_table(const GuestMemory& memory, const PageTableFormat& format, u32 depth,
                        GuestPhysical table, u64 address, u64 bytes, std::vector<PhysicalExtent>& extents) {
  const PagingLevel& level = format.storage[depth];
  const u64 end = level.index(address + bytes - 1) + 1;
  std::array<u64, kReadEntries> storage;
  for (u64 first = level.index(address); first < end; first += kReadEntries) {
    const std::span entries = std::span{storage}.first(std::min(kReadEntries, end - first));
    VMSIEVE_TRY(read_entries(memory, table, first, entries, address));
    for (const u64 raw : entries) {
      const u64 inside = address & (level.entry_bytes() - 1);
      const u64 piece = std::min(bytes, level.entry_bytes() - inside);
      VMSIEVE_ASSIGN(const PageTableEntry entry, decode_entry(format, depth, raw, address));
      if (entry.kind == PageTableEntry::Kind::kLeaf) {
        append_extent(extents, entry.address + inside, piece);
      } else {
        VMSIEVE_TRY(walk_table(memory, format, depth + 1, entry.address, address, piece, extents));
      }
      address += piece;
      bytes -= piece;
    }
  }
  return {};
}

}  // namespace

Result<GuestPhysical> translate(const GuestMemory& memory, const PageTableRoot& root, GuestVirtual address) {
  VMSIEVE_TRY(check_range(root.format, address.value, 1));
  GuestPhysical table = root.top;
  for (u32 depth = 0; depth < root.format.depth; ++depth) {
    VMSIEVE_ASSIGN(const PageTableEntry entry, read_entry(memory, root.format, depth, table, address.value));
    const u64 inside = address.value & (root.format.storage[depth].entry_bytes() - 1);
    if (entry.kind == PageTableEntry::Kind::kLeaf) return entry.address + inside;
    table = entry.address;
  }
  VMSIEVE_CHECK(false);  // the lowest level has only leaves
}

Result<std::vector<PhysicalExtent>> translate_range(const GuestMemory& memory, const PageTableRoot& root,
                                                    GuestVirtual address, u64 bytes) {
  std::vector<PhysicalExtent> extents;
  if (bytes == 0) return extents;
  VMSIEVE_TRY(check_range(root.format, address.value, bytes));
  VMSIEVE_TRY(walk_table(memory, root.format, 0, root.top, address.value, bytes, extents));
  return extents;
}

Result<GuestPhysical> top_level_table(const GuestMemory& memory, const PageTableRoot& root,
                                      GuestVirtual address) {
  VMSIEVE_TRY(check_range(root.format, address.value, 1));
  VMSIEVE_ASSIGN(const PageTableEntry entry, read_entry(memory, root.format, 0, root.top, address.value));
  return entry.address;
}

Result<void> read_virtual(const GuestMemory& memory, const PageTableRoot& root, GuestVirtual address,
                          std::span<std::byte> out) {
  VMSIEVE_ASSIGN(const auto extents, translate_range(memory, root, address, out.size()));
  for (const PhysicalExtent& extent : extents) {
    VMSIEVE_TRY(memory.read(extent.address, out.first(extent.bytes)));
    out = out.subspan(extent.bytes);
  }
  return {};
}

}  // namespace vmsieve
