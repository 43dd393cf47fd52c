// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/struct_page_scan.h"

#include <bit>
#include <cstring>
#include <optional>

namespace vmsieve {
namespace {

constexpr u32 kNoType = ~u32{0};
constexpr u64 kAtOnce = 8;  // struct pages

// The host is little-endian, as the guest is; a plain load is what the compiler can move about.
static_assert(std::endian::native == std::endian::little);
template <typename T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// STRIDE 0 stands for a size known at run time only. 64 is what every distribution's kernel has.
template <u64 STRIDE>
void scan(const PageLayout& layout, VirtualRange memmap, std::span<const std::byte> structs, u64 first_index,
          ScanWants wants, SectionScan& out) {
  const u64 stride = STRIDE != 0 ? STRIDE : layout.page_bytes;
  const u64 count = structs.size() / stride;
  const std::byte* const types = structs.data() + layout.type_offset;
  const std::byte* const refcounts = structs.data() + layout.refcount_offset;
  const std::byte* const lists = structs.data() + layout.lru_offset;
  const u32 buddy = layout.buddy_type;
  const u32 offline = wants.offline ? layout.offline_type.value_or(buddy) : buddy;
  const u64 listed_only = wants.unlisted ? 0 : 1;
  const bool follow_lists = !layout.node_data;

  const auto fault_of = [&](u64 i, u64 order) -> std::optional<BlockFault> {
    if (order >= layout.orders) return BlockFault::kOrder;
    const u64 pages = u64{1} << order;
    if (((first_index + i) & (pages - 1)) != 0 || pages > count - i) return BlockFault::kAlignment;
    if (load<u32>(refcounts + i * stride) != 0) return BlockFault::kHeadInUse;
    u32 wrong = 0;
    for (u64 k = i + 1; k < i + pages; ++k) {
      wrong |= load<u32>(refcounts + k * stride) | (load<u32>(types + k * stride) ^ kNoType);
    }
    if (wrong != 0) return BlockFault::kInterior;
    return std::nullopt;
  };

  // One that there is something to be done about; without a branch, for most are not, in no order that a
  // processor could foresee.
  const auto matters = [&](u64 i) -> bool {
    const u32 type = load<u32>(types + i * stride);
    const u64 users = load<u32>(refcounts + i * stride);
    const u64 tail = load<u64>(lists + i * stride) & 1;
    return ((type == buddy) | (type == offline) |
            ((type == kNoType) & ((users | tail | listed_only) == 0))) != 0;
  };

  u64 one_by_one = 0;  // up to here
  for (u64 i = 0; i < count;) {
    if (i >= one_by_one && i + kAtOnce <= count) {
      bool any = false;
      for (u64 k = 0; k < kAtOnce; ++k) any |= matters(i + k);
      if (!any) {
        i += kAtOnce;
        continue;
      }
      one_by_one = i + kAtOnce;
    }
    const u32 type = load<u32>(types + i * stride);
    if (type != buddy) {
      if (type == kNoType) {
        if (matters(i)) {
          out.unlisted.push_back(
              {first_index + i, load<u64>(lists + i * stride), load<u64>(lists + i * stride + 8)});
        }
      } else if (type == offline) {
        out.offline.push_back(static_cast<u32>(first_index + i));
      }
      ++i;
      continue;
    }
    const u64 order = load<u64>(structs.data() + i * stride + layout.private_offset);
    if (const auto fault = fault_of(i, order)) {
      out.malformed.emplace_back(first_index + i, *fault);
      ++i;
    } else {
      out.blocks.emplace_back(first_index + i, order);
      if (follow_lists) {
        const u64 next = load<u64>(structs.data() + i * stride + layout.lru_offset);
        if (!memmap.contains(next)) out.list_ends.push_back({next, static_cast<u32>(order)});
      }
      i += u64{1} << order;
    }
  }
}

}  // namespace

std::string_view to_string(BlockFault fault) {
  switch (fault) {
    case BlockFault::kOrder: return "its order is impossible";
    case BlockFault::kAlignment: return "it is not aligned to its length";
    case BlockFault::kHeadInUse: return "its first page is in use";
    case BlockFault::kInterior: return "a page inside is in use";
    case BlockFault::kNotRam: return "part of it is not RAM";
  }
  return "it is malformed";
}

void scan_struct_pages(const PageLayout& layout, VirtualRange memmap, std::span<const std::byte> structs,
                       u64 first_index, ScanWants wants, SectionScan& out) {
  if (layout.page_bytes == 64) {
    scan<64>(layout, memmap, structs, first_index, wants, out);
  } else {
    scan<0>(layout, memmap, structs, first_index, wants, out);
  }
}

}  // namespace vmsieve
