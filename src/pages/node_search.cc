// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/node_search.h"

#include <algorithm>
#include <optional>

#include "vmsieve/base/endian.h"
#include "vmsieve/pages/zones.h"

namespace vmsieve {
namespace {

// Zones, orders and migrate types of the largest machines make a few thousand lists.
constexpr std::size_t kMaxEnds = 16384;

class NodeSearch {
 public:
  NodeSearch(const GuestMemory& memory, const PageTableRoot& tables, const PageLayout& layout,
             VirtualRange memmap)
      : memory_(memory), tables_(tables), layout_(layout), memmap_(memmap) {}

  Result<void> add(const FreeListEnd& end);
  std::vector<NodePlace> finish() && { return std::move(nodes_); }

 private:
  bool is_known(const FreeListEnd& end) const;
  u64 area(u64 zone, u32 order) const {
    return zone + layout_.zone_free_area_offset + order * layout_.free_area_bytes;
  }
  Result<bool> read(u64 address, std::span<std::byte> out) const;
  Result<bool> is_zone(u64 address) const;
  Result<std::optional<NodePlace>> node_around(u64 zone, u32 index) const;
  Result<std::optional<NodePlace>> node_of(u64 zone) const;

  const GuestMemory& memory_;
  const PageTableRoot& tables_;
  const PageLayout& layout_;
  VirtualRange memmap_;
  std::vector<u64> zones_;
  std::vector<NodePlace> nodes_;
};

bool NodeSearch::is_known(const FreeListEnd& end) const {
  return std::any_of(zones_.begin(), zones_.end(),
                     [&](u64 zone) { return end.address - area(zone, end.order) < layout_.nr_free_offset; });
}

// False when the guest has nothing there.
Result<bool> NodeSearch::read(u64 address, std::span<std::byte> out) const {
  const auto result = read_virtual(memory_, tables_, GuestVirtual{address}, out);
  if (result.ok()) return true;
  if (guest_says_no(result.error())) return false;
  return result.error().with_context("looking for the guest's memory zones");
}

// Every list is empty, or both of its ends are struct pages. A zone taken for one that begins a few
// lists earlier or later would have its counters among the links.
Result<bool> NodeSearch::is_zone(u64 address) const {
  std::vector<std::byte> areas(layout_.orders * layout_.free_area_bytes);
  const u64 begin = area(address, 0);
  VMSIEVE_ASSIGN(const bool there, read(begin, areas));
  if (!there) return false;
  for (u64 order = 0; order < layout_.orders; ++order) {
    for (u64 list = 0; list < layout_.nr_free_offset; list += layout_.list_bytes) {
      const u64 at = order * layout_.free_area_bytes + list;
      const u64 next = load_le<u64>(&areas[at]);
      const u64 prev = load_le<u64>(&areas[at + 8]);
      const bool empty = next == begin + at && prev == begin + at;
      if (!empty && (!memmap_.contains(next) || !memmap_.contains(prev))) return false;
    }
  }
  return true;
}

// The node that has the zone as its zone number `index`, if that can be.
Result<std::optional<NodePlace>> NodeSearch::node_around(u64 zone, u32 index) const {
  const std::optional<NodePlace> none;
  const u64 address = zone - layout_.node_zones_offset - index * layout_.zone_bytes;
  std::vector<std::byte> bytes(layout_.node_bytes);
  VMSIEVE_ASSIGN(const bool there, read(address, bytes));
  if (!there) return none;
  const u32 id = load_le<u32>(&bytes[layout_.node_id_offset]);
  const u32 zones = load_le<u32>(&bytes[layout_.node_nr_zones_offset]);
  const u64 spanned = load_le<u64>(&bytes[layout_.node_spanned_offset]);
  const u64 start = load_le<u64>(&bytes[layout_.node_start_offset]);
  if (id >= kMaxNodes || zones <= index || zones > kMaxZonesPerNode || start > kPfnLimit ||
      spanned > kPfnLimit) {
    return none;
  }
  for (u32 i = 0; i < zones; ++i) {
    const u64 at = layout_.node_zones_offset + i * layout_.zone_bytes;
    if (at + layout_.zone_bytes > bytes.size()) return none;
    const u64 zone_spanned = load_le<u64>(&bytes[at + layout_.zone_spanned_offset]);
    if (zone_spanned > spanned || (i == index && zone_spanned == 0)) return none;
    if (zone_spanned == 0) continue;  // its lists were never set up (free_area_init_core())
    VMSIEVE_ASSIGN(const bool zone_fits, is_zone(address + at));
    if (!zone_fits) return none;
  }
  return std::optional{NodePlace{id, GuestVirtual{address}}};
}

Result<std::optional<NodePlace>> NodeSearch::node_of(u64 zone) const {
  std::optional<NodePlace> found;
  for (u32 index = 0; index < kMaxZonesPerNode; ++index) {
    VMSIEVE_ASSIGN(const auto node, node_around(zone, index));
    if (node && found) return std::optional<NodePlace>{};
    if (node) found = node;
  }
  return found;
}

Result<void> NodeSearch::add(const FreeListEnd& end) {
  if (is_known(end)) return {};
  std::optional<u64> zone;
  for (u64 list = 0; list < layout_.nr_free_offset; list += layout_.list_bytes) {
    const u64 candidate = end.address - list - area(0, end.order);
    VMSIEVE_ASSIGN(const bool fits, is_zone(candidate));
    if (fits && zone) return {};
    if (fits) zone = candidate;
  }
  if (!zone) return {};
  VMSIEVE_ASSIGN(const auto node, node_of(*zone));
  if (!node) return {};
  zones_.push_back(*zone);
  if (std::find(nodes_.begin(), nodes_.end(), *node) == nodes_.end()) nodes_.push_back(*node);
  return {};
}

}  // namespace

Result<std::vector<NodePlace>> find_nodes(const GuestMemory& memory, const PageTableRoot& tables,
                                          const PageLayout& layout, VirtualRange memmap,
                                          std::vector<FreeListEnd> ends) {
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  if (ends.size() > kMaxEnds) {
    return make_error(ErrorKind::kUnsupported,
                      "the guest's free lists end in {} places, more than any kernel's", ends.size());
  }
  NodeSearch search(memory, tables, layout, memmap);
  for (const FreeListEnd& end : ends) VMSIEVE_TRY(search.add(end));
  auto nodes = std::move(search).finish();
  if (nodes.empty()) {
    return Error(ErrorKind::kUnsupported, "the guest's free lists lead to no memory zone");
  }
  return nodes;
}

}  // namespace vmsieve
