// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/page_tables.h"
#include "vmsieve/pages/page_layout.h"

namespace vmsieve {

struct NodePlace;

inline constexpr u32 kMaxZonesPerNode = 16;     ///< enum zone_type has 6 values
inline constexpr u64 kPfnLimit = u64{1} << 40;  ///< 52 bits of address

/// Free blocks per order.
using OrderCounts = std::array<u64, kMaxOrders>;

/// Zones whose page frames cannot be told apart, because their spans overlap; mostly one zone.
struct ZoneGroup {
  std::string name;       ///< "node 0 zone 1", or a list of them
  PfnRange span;          ///< all their page frames (of 4 KiB), holes included
  OrderCounts nr_free{};  ///< free_area[order].nr_free, summed over the zones; saturates
};

/// The allocator's own counters, for check E.
struct Zones {
  std::vector<ZoneGroup> groups;        ///< ascending by span, not overlapping
  std::vector<GuestVirtual> addresses;  ///< struct zone of each zone that spans anything

  /// Index in `groups` of the one that spans the page frame.
  std::optional<std::size_t> group_of(Pfn pfn) const;
};

/// Reads every zone of every node: those of `layout.node_data`, or if there is none, `nodes`. Where zones
/// begin is not in VMCOREINFO; it is looked for beside the member that is, and when what is found there does
/// not fit nodes and counters, all zones make one group that spans everything: the sums are as exact.
/// kDamaged when the structures make no sense, kUnsupported when there is no zone.
Result<Zones> read_zones(const GuestMemory& memory, const PageTableRoot& tables, const PageLayout& layout,
                         std::span<const NodePlace> nodes);

}  // namespace vmsieve
