// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/zones.h"

#include <algorithm>
#include <limits>

#include "vmsieve/base/endian.h"
#include "vmsieve/pages/node_search.h"

namespace vmsieve {
namespace {

constexpr std::size_t kMaxNameParts = 8;

// struct zone, include/linux/mmzone.h, the same from 4.20 (managed_pages became an atomic_long_t) to
// 7.x: zone_start_pfn, managed_pages, spanned_pages, present_pages, 8 bytes each.
constexpr u64 kStartBeforeSpanned = 16;
constexpr u64 kManagedBeforeSpanned = 8;
constexpr u64 kPresentAfterSpanned = 8;

struct Node {
  u32 index = 0;
  u64 start_pfn = 0;
  u64 spanned_pages = 0;
};

struct Zone {
  Node node;
  u32 index = 0;
  GuestVirtual address;
  u64 spanned_pages = 0;
  std::optional<u64> start_pfn;  // when it was found
  OrderCounts nr_free{};
};

u64 add_saturated(u64 a, u64 b) {
  u64 sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? std::numeric_limits<u64>::max() : sum;
}

// None when the fields around spanned_pages are not what they are taken for.
std::optional<u64> find_start_pfn(const PageLayout& layout, const Node& node,
                                  std::span<const std::byte> zone) {
  const u64 spanned_offset = layout.zone_spanned_offset;
  if (spanned_offset < kStartBeforeSpanned || spanned_offset + kPresentAfterSpanned + 8 > zone.size()) {
    return std::nullopt;
  }
  const u64 spanned = load_le<u64>(&zone[spanned_offset]);
  const u64 start = load_le<u64>(&zone[spanned_offset - kStartBeforeSpanned]);
  const u64 managed = load_le<u64>(&zone[spanned_offset - kManagedBeforeSpanned]);
  const u64 present = load_le<u64>(&zone[spanned_offset + kPresentAfterSpanned]);
  if (managed > present || present > spanned || spanned > node.spanned_pages || start > kPfnLimit ||
      node.start_pfn > kPfnLimit || node.spanned_pages > kPfnLimit) {
    return std::nullopt;
  }
  if (start < node.start_pfn || start + spanned > node.start_pfn + node.spanned_pages) return std::nullopt;
  return start;
}

class ZoneReader {
 public:
  ZoneReader(const GuestMemory& memory, const PageTableRoot& tables, const PageLayout& layout)
      : memory_(memory), tables_(tables), layout_(layout) {}

  Result<std::vector<Zone>> read_all(std::span<const NodePlace> nodes);

 private:
  Result<void> read_node(u32 index, GuestVirtual node);
  Result<Zone> read_zone(const Node& node, u32 index, GuestVirtual address) const;
  Result<u64> read_u64(GuestVirtual address) const;

  const GuestMemory& memory_;
  const PageTableRoot& tables_;
  const PageLayout& layout_;
  std::vector<Zone> zones_;
};

Result<u64> ZoneReader::read_u64(GuestVirtual address) const {
  std::byte bytes[8];
  VMSIEVE_TRY(read_virtual(memory_, tables_, address, bytes));
  return load_le<u64>(bytes);
}

Result<Zone> ZoneReader::read_zone(const Node& node, u32 index, GuestVirtual address) const {
  std::vector<std::byte> bytes(layout_.zone_bytes);
  VMSIEVE_TRY(read_virtual(memory_, tables_, address, bytes));
  Zone zone{node,
            index,
            address,
            load_le<u64>(&bytes[layout_.zone_spanned_offset]),
            find_start_pfn(layout_, node, bytes),
            {}};
  bool counts = false;
  for (u64 order = 0; order < layout_.orders; ++order) {
    const u64 at = layout_.zone_free_area_offset + order * layout_.free_area_bytes + layout_.nr_free_offset;
    zone.nr_free[order] = load_le<u64>(&bytes[at]);
    counts = counts || zone.nr_free[order] != 0;
  }
  if (zone.spanned_pages == 0 && counts) {
    return make_error(ErrorKind::kDamaged, "node {} zone {} counts free blocks but spans no memory",
                      node.index, index);
  }
  return zone;
}

Result<void> ZoneReader::read_node(u32 index, GuestVirtual address) {
  std::byte bytes[4];
  VMSIEVE_TRY(read_virtual(memory_, tables_, address + layout_.node_nr_zones_offset, bytes));
  const u32 nr_zones = load_le<u32>(bytes);  // the highest populated zone's index + 1
  const u64 room = layout_.node_bytes - layout_.node_zones_offset;
  if (nr_zones > kMaxZonesPerNode || nr_zones * layout_.zone_bytes > room) {
    return make_error(ErrorKind::kDamaged, "node {} has {} zones, which cannot be right", index, nr_zones);
  }
  Node node{index, 0, 0};
  VMSIEVE_ASSIGN(node.start_pfn, read_u64(address + layout_.node_start_offset));
  VMSIEVE_ASSIGN(node.spanned_pages, read_u64(address + layout_.node_spanned_offset));
  for (u32 i = 0; i < nr_zones; ++i) {
    VMSIEVE_ASSIGN(Zone zone,
                   read_zone(node, i, address + layout_.node_zones_offset + i * layout_.zone_bytes));
    if (zone.spanned_pages != 0) zones_.push_back(zone);
  }
  return {};
}

Result<std::vector<Zone>> ZoneReader::read_all(std::span<const NodePlace> nodes) {
  if (!layout_.node_data) {
    for (const NodePlace& node : nodes) VMSIEVE_TRY(read_node(node.id, node.address));
    return std::move(zones_);
  }
  if (layout_.nodes == 0) {
    VMSIEVE_TRY(read_node(0, *layout_.node_data));
    return std::move(zones_);
  }
  std::vector<std::byte> pointers(layout_.nodes * 8);
  VMSIEVE_TRY(read_virtual(memory_, tables_, *layout_.node_data, pointers));
  for (u32 i = 0; i < layout_.nodes; ++i) {
    const u64 node = load_le<u64>(&pointers[u64{i} * 8]);
    if (node != 0) VMSIEVE_TRY(read_node(i, GuestVirtual{node}));
  }
  return std::move(zones_);
}

void add_zone(ZoneGroup& group, const Zone& zone, std::size_t parts) {
  if (parts < kMaxNameParts) {
    group.name += fmt::format("{}node {} zone {}", parts == 0 ? "" : ", ", zone.node.index, zone.index);
  } else if (parts == kMaxNameParts) {
    group.name += ", ...";
  }
  for (std::size_t order = 0; order < zone.nr_free.size(); ++order) {
    group.nr_free[order] = add_saturated(group.nr_free[order], zone.nr_free[order]);
  }
}

}  // namespace

std::optional<std::size_t> Zones::group_of(Pfn pfn) const {
  const auto after = std::upper_bound(groups.begin(), groups.end(), pfn,
                                      [](Pfn p, const ZoneGroup& group) { return p < group.span.first; });
  if (after == groups.begin() || !std::prev(after)->span.contains(pfn)) return std::nullopt;
  return static_cast<std::size_t>(std::prev(after) - groups.begin());
}

Result<Zones> read_zones(const GuestMemory& memory, const PageTableRoot& tables, const PageLayout& layout,
                         std::span<const NodePlace> nodes) {
  auto read = ZoneReader(memory, tables, layout).read_all(nodes);
  if (!read.ok()) return read.error().with_context("reading the guest's memory zones");
  std::vector<Zone>& zones = *read;
  if (zones.empty()) return Error(ErrorKind::kUnsupported, "the guest's nodes have no memory zone");

  const bool told_apart =
      std::all_of(zones.begin(), zones.end(), [](const Zone& z) { return z.start_pfn.has_value(); });
  if (told_apart) {
    std::stable_sort(zones.begin(), zones.end(),
                     [](const Zone& a, const Zone& b) { return a.start_pfn < b.start_pfn; });
  }
  Zones result;
  std::size_t parts = 0;
  for (const Zone& zone : zones) {
    result.addresses.push_back(zone.address);
    const PfnRange span = told_apart ? PfnRange{Pfn{*zone.start_pfn << layout.frame_shift()},
                                                zone.spanned_pages << layout.frame_shift()}
                                     : PfnRange{Pfn{0}, kPfnLimit};
    if (result.groups.empty() || span.first.value >= result.groups.back().span.end()) {
      result.groups.push_back({{}, span, {}});
      parts = 0;
    }
    ZoneGroup& group = result.groups.back();
    group.span.count = std::max(group.span.end(), span.end()) - group.span.first.value;
    add_zone(group, zone, parts++);
  }
  return result;
}

}  // namespace vmsieve
