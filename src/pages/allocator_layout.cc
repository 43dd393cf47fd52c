// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/allocator_layout.h"

#include <array>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

constexpr u64 kMaxPcpLists = 64;
constexpr u64 kMaxPools = 16;               // HUGE_MAX_HSTATE is 4 at most
constexpr u64 kMaxPerCpuBytes = 16 * kKiB;  // read for every zone and CPU; Debian's is 320 bytes
constexpr u32 kEntryShift = 3;              // entries of page tables have 8 bytes
// Lists for orders 0 to PAGE_ALLOC_COSTLY_ORDER (include/linux/mmzone.h).
constexpr u64 kCostlyOrder = 3;

// A member of exactly so many bytes, aligned to them, inside its structure.
std::optional<u64> field(const Btf& types, std::string_view structure, std::string_view path, u64 bytes) {
  const auto member = types.member(structure, path);
  const auto size = types.size_of(structure);
  if (!member || !size || *size > kMaxStructBytes || member->size != bytes) return std::nullopt;
  if (member->offset % bytes != 0 || member->offset > *size || *size - member->offset < bytes)
    return std::nullopt;
  return member->offset;
}

// An array of `element_bytes` each, inside its structure.
std::optional<Btf::Member> array(const Btf& types, std::string_view structure, std::string_view path,
                                 u64 element_bytes) {
  const auto member = types.member(structure, path);
  const auto size = types.size_of(structure);
  if (!member || !size || *size > kMaxStructBytes || member->elements == 0) return std::nullopt;
  if (member->size != member->elements * element_bytes || member->offset % 8 != 0) return std::nullopt;
  if (member->offset > *size || *size - member->offset < member->size) return std::nullopt;
  return member;
}

// Lists are by order, and within an order by migrate type, MIGRATE_PCPTYPES of them; behind those of the
// low orders stand some for huge pages, blocks of `huge_order`, as long as one entry of the second-lowest
// page table maps (HPAGE_PMD_ORDER): one for each type in 5.14, one in all since 5.19 (5d0a661d808f), two
// later (order_to_pindex(), mm/page_alloc.c). Before 5.14 there was one order only.
std::optional<std::vector<u32>> list_orders(const Btf& types, u64 lists, u32 huge_order) {
  const auto per_order = types.enumerator("MIGRATE_PCPTYPES");
  if (!per_order || *per_order < 1 || *per_order > 8 || lists > kMaxPcpLists) return std::nullopt;
  const auto n = static_cast<u64>(*per_order);
  const u64 low = n * (kCostlyOrder + 1);
  if (lists != n && (lists < low || lists > low + n)) return std::nullopt;
  std::vector<u32> orders;
  for (u64 i = 0; i < lists; ++i) orders.push_back(i < low ? static_cast<u32>(i / n) : huge_order);
  return orders;
}

std::optional<AllocatorLayout::PerCpuLists> read_per_cpu(const GuestMemory& memory,
                                                         const PageTableRoot& tables,
                                                         const KernelSymbols& symbols, u32 page_shift) {
  const Btf& types = symbols.types();
  AllocatorLayout::PerCpuLists lists;
  u64 inside = 0;
  auto pointer = field(types, "zone", "per_cpu_pageset", 8);
  if (!pointer) {
    // Before 5.14 the zone points to struct per_cpu_pageset, which holds a struct per_cpu_pages.
    pointer = field(types, "zone", "pageset", 8);
    const auto pcp = types.offset_of("per_cpu_pageset", "pcp");
    if (!pcp) return std::nullopt;
    inside = *pcp;
  }
  const auto count = field(types, "per_cpu_pages", "count", 4);
  const auto heads = array(types, "per_cpu_pages", "lists", kListHeadBytes);
  const auto size = types.size_of("per_cpu_pages");
  if (!pointer || !count || !heads || inside > kMaxPerCpuBytes || *size > kMaxPerCpuBytes)
    return std::nullopt;
  auto orders = list_orders(types, heads->elements, page_shift - kEntryShift);
  auto offsets = read_cpu_offsets(memory, tables, symbols);
  if (!orders || !offsets.ok()) return std::nullopt;
  lists.pointer_offset = *pointer;
  lists.count_offset = inside + *count;
  lists.lists_offset = inside + heads->offset;
  lists.list_orders = *std::move(orders);
  lists.cpu_offsets = *std::move(offsets);
  if (const auto lock = types.member("per_cpu_pages", "lock");
      lock && lock->size >= 4 && lock->offset % 4 == 0) {
    if (lock->offset + 4 > *size) return std::nullopt;
    lists.lock_offset = inside + lock->offset;
  }
  return lists;
}

std::optional<AllocatorLayout::HugetlbPools> read_hugetlb(const GuestMemory& memory, PageTableRoot tables,
                                                          const KernelSymbols& symbols, u64 lru_offset) {
  const Btf& types = symbols.types();
  constexpr std::array<std::string_view, 3> names{"hstates", "hugetlb_max_hstate", "hugetlb_lock"};
  const auto found = symbols.symbols().addresses(names);
  const auto size = types.size_of("hstate");
  const auto order = field(types, "hstate", "order", 4);
  const auto counts = array(types, "hstate", "free_huge_pages_node", 4);
  const auto lists = array(types, "hstate", "hugepage_freelists", kListHeadBytes);
  if (!found[0] || !found[1] || !found[2] || !size || !order || !counts || !lists) return std::nullopt;
  if (counts->elements != lists->elements || counts->elements > kMaxNodes) return std::nullopt;
  std::array<std::byte, 4> pools;
  if (!read_virtual(memory, tables, *found[1], pools).ok()) return std::nullopt;
  AllocatorLayout::HugetlbPools layout;
  layout.pools = load_le<u32>(pools.data());
  if (layout.pools > kMaxPools) return std::nullopt;
  layout.hstates = *found[0];
  layout.lock = *found[2];
  layout.hstate_bytes = *size;
  layout.nodes = counts->elements;
  layout.order_offset = *order;
  layout.free_count_offset = counts->offset;
  layout.freelists_offset = lists->offset;
  layout.next_offset = lru_offset;
  return layout;
}

}  // namespace

AllocatorLayout AllocatorLayout::read(const GuestMemory& memory, const LinuxKernel& kernel,
                                      const KernelSymbols& symbols) {
  const Btf& types = symbols.types();
  AllocatorLayout layout;
  const auto page_bytes = types.size_of("page");
  const auto lru = types.member("page", "lru");
  // The types must be those of the kernel whose VMCOREINFO says how large struct page is.
  if (!lru || lru->size != kListHeadBytes || lru->offset % 8 != 0 || !page_bytes ||
      kernel.vmcoreinfo().size("page") != page_bytes || lru->offset + kListHeadBytes > *page_bytes ||
      kernel.vmcoreinfo().size("zone") != types.size_of("zone")) {
    return layout;
  }
  layout.lru_offset = lru->offset;
  layout.per_cpu = read_per_cpu(memory, kernel.page_tables(), symbols, kernel.page_shift());
  layout.hugetlb = read_hugetlb(memory, kernel.page_tables(), symbols, layout.lru_offset);

  const auto first = field(types, "zone", "trylock_free_pages", 8);
  const auto link = field(types, "page", "pcp_llist", 8);
  if (first && link) layout.trylock = {*first, *link};

  // With PREEMPT_RT the lock is an rt_mutex, whose owner tells (include/linux/rtmutex.h).
  if (const auto owner = field(types, "zone", "lock.lock.owner", 8)) {
    layout.zone_lock_offset = owner;
    layout.zone_lock_bytes = 8;
  } else if (const auto lock = types.member("zone", "lock");
             lock && lock->size >= 4 && lock->offset % 4 == 0) {
    layout.zone_lock_offset = lock->offset;
  }
  const auto state = symbols.symbols().address("system_state");
  const auto running = types.enumerator("SYSTEM_RUNNING");
  if (state && running && *running >= 0) layout.system_state = {*state, static_cast<u32>(*running)};
  return layout;
}

}  // namespace vmsieve
