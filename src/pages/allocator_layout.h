// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/kernel_symbols.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/pages/page_layout.h"

namespace vmsieve {

/// Where a kernel keeps free pages that carry no flag, and the locks that say that it is at work there:
/// read once from its names and types, good for as long as it runs. Each part is there only when all of
/// it was understood; a part that is missing means that its pages are saved.
struct AllocatorLayout {
  u64 lru_offset = 0;  ///< in struct page: struct list_head, by which free lists are linked

  /// struct per_cpu_pages of a zone and a CPU is at the zone's pointer plus the CPU's offset.
  struct PerCpuLists {
    std::vector<u64> cpu_offsets;    ///< of the possible CPUs
    u64 pointer_offset = 0;          ///< in struct zone: u64, per_cpu_pageset, before 5.14 pageset
    u64 count_offset = 0;            ///< in what it points to: u32, pages in all lists
    u64 lists_offset = 0;            ///< array of struct list_head
    std::vector<u32> list_orders;    ///< order of the blocks in each list
    std::optional<u64> lock_offset;  ///< u32, not 0 while it is held (since 6.0)
  };
  std::optional<PerCpuLists> per_cpu;

  /// Blocks freed where the zone's lock could not be taken (since 6.15): an llist in struct zone, linked
  /// through struct page's pcp_llist, each block's order in `private`.
  struct TrylockList {
    u64 first_offset = 0;  ///< in struct zone: u64
    u64 link_offset = 0;   ///< in struct page: u64
  };
  std::optional<TrylockList> trylock;

  /// Free pages of hugetlb pools: struct hstate's hugepage_freelists by node.
  struct HugetlbPools {
    GuestVirtual hstates;
    u64 hstate_bytes = 0;
    u64 pools = 0;  ///< hugetlb_max_hstate
    u64 nodes = 0;
    u64 order_offset = 0;       ///< u32
    u64 free_count_offset = 0;  ///< u32[nodes], free_huge_pages_node
    u64 freelists_offset = 0;   ///< struct list_head[nodes]
    u64 next_offset = 0;        ///< in struct page: lru, by which heads are linked
    GuestVirtual lock;          ///< hugetlb_lock, u32
  };
  std::optional<HugetlbPools> hugetlb;

  /// In struct zone: a word that is not 0 while somebody works at its free lists.
  std::optional<u64> zone_lock_offset;
  u64 zone_lock_bytes = 4;

  /// enum system_states system_state, and the value from which on the page allocator is complete.
  struct SystemState {
    GuestVirtual address;
    u32 running = 0;
  };
  std::optional<SystemState> system_state;

  /// Reads what is there of it; reads guest memory for the number of CPUs and pools only.
  static AllocatorLayout read(const GuestMemory& memory, const LinuxKernel& kernel,
                              const KernelSymbols& symbols);
};

}  // namespace vmsieve
