// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "support/fake_btf.h"
#include "support/fake_guest.h"
#include "support/fake_kallsyms.h"
#include "vmsieve/guest/kernel_symbols.h"
#include "vmsieve/pages/allocator_layout.h"

namespace vmsieve::testing {

/// What the kernel of a FakeAllocator has, and how its types look.
struct FakeAllocatorOptions {
  FakeGuestOptions guest{};
  u32 cpus = 2;
  u32 lists = 14;          ///< per CPU: 3 for each of 4 orders, 2 for huge pages
  bool pageset = false;    ///< before 5.14: zone->pageset, a struct per_cpu_pages inside another
  u32 pcp_lock_bytes = 4;  ///< 0: per_cpu_pages has no lock, before 6.0
  bool trylock = true;     ///< zone->trylock_free_pages, since 6.15
  bool hugetlb = true;
  bool realtime = false;    ///< zone->lock is an rt_mutex
  u32 zone_lock_bytes = 4;  ///< 0: without SMP a lock is nothing
  u32 page_bytes = 64;      ///< sizes that the types tell
  u32 zone_bytes = 1024;
  u32 cpumask_bytes = 8;
  u32 lru_bytes = 16;
  u32 count_bytes = 4;  ///< per_cpu_pages.count
  u32 count_offset = 4;
  u32 pcp_bytes = 512;         ///< struct per_cpu_pages
  u32 lock_offset = 0;         ///< per_cpu_pages.lock
  std::int32_t pcptypes = 3;   ///< MIGRATE_PCPTYPES
  u32 hugetlb_list_nodes = 2;  ///< elements of hugepage_freelists
  u32 hstate_bytes = 64;
};

/// A FakeGuest whose kernel has names, types, per-CPU lists of free pages and hugetlb pools, all empty
/// and consistent, written after include/linux/mmzone.h and hugetlb.h without the code under test.
class FakeAllocator {
 public:
  explicit FakeAllocator(FakeAllocatorOptions options = {});

  // ---- where things are, in the kernel image ----
  static constexpr GuestPhysical kBanner{0x122'0000};
  static constexpr GuestPhysical kKallsyms{0x140'0000};
  static constexpr GuestPhysical kBtf{0x148'0000};
  static constexpr GuestPhysical kSystemState{0x150'2000};
  static constexpr GuestPhysical kCpuOffsets{0x150'3000};
  static constexpr GuestPhysical kPossibleMask{0x150'5000};
  static constexpr GuestPhysical kMaxHstate{0x150'6000};
  static constexpr GuestPhysical kHugetlbLock{0x150'6010};
  static constexpr GuestPhysical kPhysBase{0x150'6020};
  static constexpr GuestPhysical kMemSection{0x150'6028};  // a pointer
  static constexpr GuestPhysical kNodeData{0x150'6040};    // two pointers
  static constexpr GuestPhysical kHstates{0x150'7000};     // two of them
  static constexpr GuestPhysical kPerCpu{0x151'0000};      // 16 KiB each
  static constexpr u64 kZonePageset = 16, kZoneLock = 944, kZoneTrylock = 1008;
  static constexpr u64 kPcpLists = 64, kPcpInPageset = 16, kPoolCounts = 8, kPoolLists = 16;
  static constexpr u32 kRunning = 3;

  static GuestVirtual image(GuestPhysical physical) {
    return GuestVirtual{FakeGuest::kStartKernelMap - FakeGuest::kPhysBase + physical.value};
  }
  u64 cpu_offset(u32 cpu) const { return guest_.direct(kPerCpu + cpu * 0x4000).value; }
  /// struct per_cpu_pages.
  GuestPhysical pcp(u32 cpu, u32 zone) const { return kPerCpu + cpu * 0x4000 + pcp_offset(zone); }
  GuestPhysical pcp_count(u32 cpu, u32 zone) const { return pcp(cpu, zone) + options_.count_offset; }
  GuestPhysical zone_lock(u32 zone) const {
    return guest_.zone(zone) + kZoneLock + (options_.realtime ? 24 : 0);
  }
  GuestPhysical pool(u32 pool) const { return kHstates + pool * options_.hstate_bytes; }

  FakeGuest& guest() { return guest_; }
  FakeMemory& memory() { return guest_.memory(); }
  AllocatorLayout layout() {
    const LinuxKernel kernel = guest_.kernel();
    const auto symbols = KernelSymbols::read(memory(), kernel);
    VMSIEVE_CHECK(symbols.ok());
    return AllocatorLayout::read(memory(), kernel, *symbols);
  }

  // ---- lists ----
  /// A struct list_head: where its bytes are, and the address by which others know it.
  struct Link {
    GuestPhysical at;
    GuestVirtual address;
  };
  Link page_link(u64 pfn) const {
    return {guest_.struct_page(pfn) + 8, guest_.vmemmap() + pfn * guest_.options().page_bytes + 8};
  }
  Link pcp_list(u32 cpu, u32 zone, u32 list) const {
    const u64 inside = pcp_offset(zone) + kPcpLists + list * 16;
    return {kPerCpu + cpu * 0x4000 + inside, GuestVirtual{cpu_offset(cpu) + inside}};
  }
  Link pool_list(u32 pool_index, u32 node) const {
    const GuestPhysical at = pool(pool_index) + kPoolLists + node * 16;
    return {at, image(at)};
  }
  void make_empty(Link head) {
    set_next(head, head.address.value);
    set_prev(head, head.address.value);
  }
  /// list_add_tail().
  void append(Link head, Link link) {
    const Link last = link_at(head, memory().read_u64(head.at + 8));
    set_next(last, link.address.value);
    set_prev(link, last.address.value);
    set_next(link, head.address.value);
    set_prev(head, link.address.value);
  }
  void set_next(Link link, u64 value) { memory().write_le(link.at, value); }
  void set_prev(Link link, u64 value) { memory().write_le(link.at + 8, value); }

  /// Pages that nobody uses and that carry no flag, as on a list.
  void unuse(u64 pfn, u64 order) {
    for (u64 i = 0; i < u64{1} << order; ++i) guest_.set_page(pfn + i, 0, ~u32{0}, 0);
  }
  /// Puts a block on a CPU's list and counts it.
  void list_block(u32 cpu, u32 zone, u32 list, u64 pfn, u64 order) {
    unuse(pfn, order);
    append(pcp_list(cpu, zone, list), page_link(pfn));
    count_pages(cpu, zone, std::int32_t{1} << order);
  }
  void count_pages(u32 cpu, u32 zone, std::int32_t more) {
    const u64 count = memory().read_u64(pcp_count(cpu, zone));
    memory().write_le(pcp_count(cpu, zone), static_cast<u32>(count) + static_cast<u32>(more));
  }
  /// Puts a block in front of a zone's trylock list.
  void trylock_block(u32 zone, u64 pfn, u64 order) {
    unuse(pfn, order);
    const GuestPhysical first = guest_.zone(zone) + kZoneTrylock;
    memory().write_le(guest_.struct_page(pfn) + 8, memory().read_u64(first));
    memory().write_le(guest_.struct_page(pfn) + 40, order);
    memory().write_le(first, page_link(pfn).address.value);
  }
  /// Puts a huge page into a pool and counts it; its tail pages point to its head.
  void pool_page(u32 pool_index, u32 node, u64 pfn, u64 order) {
    for (u64 i = 0; i < u64{1} << order; ++i) {
      guest_.set_page(pfn + i, 0, i == 0 ? 0xf400'0000 : ~u32{0}, 0);
      memory().write_le(guest_.struct_page(pfn + i) + 8, (guest_.vmemmap().value + pfn * 64) | 1);
    }
    append(pool_list(pool_index, node), page_link(pfn));
    const GuestPhysical count = pool(pool_index) + kPoolCounts + node * 4;
    memory().write_le(count, static_cast<u32>(memory().read_u64(count)) + 1);
  }

  // ---- names ----
  void add_symbol(FakeSymbol symbol) {
    symbols_.push_back(std::move(symbol));
    write_kallsyms();
  }
  void remove_symbol(const std::string& name) {
    std::erase_if(symbols_, [&](const FakeSymbol& s) { return s.name == name; });
    write_kallsyms();
  }
  void move_symbol(const std::string& name, GuestVirtual address) {
    for (FakeSymbol& symbol : symbols_) {
      if (symbol.name == name) symbol.address = address;
    }
    write_kallsyms();
  }

 private:
  u64 pageset_value(u32 zone) const { return 0x1000 + zone * u64{0x400}; }
  u64 pcp_offset(u32 zone) const { return pageset_value(zone) + (options_.pageset ? kPcpInPageset : 0); }
  Link link_at(Link head, u64 address) const {
    if (address == head.address.value) return head;
    return page_link((address - guest_.vmemmap().value) / guest_.options().page_bytes);
  }
  std::vector<std::byte> types() const;
  void write_kallsyms();

  FakeAllocatorOptions options_;
  FakeGuest guest_;
  std::vector<FakeSymbol> symbols_;
};

inline FakeAllocator::FakeAllocator(FakeAllocatorOptions options)
    : options_(std::move(options)), guest_(options_.guest) {
  const auto btf = types();
  VMSIEVE_CHECK(btf.size() < kSystemState - kBtf);
  memory().write(kBtf, btf);
  memory().write(kBanner, as_byte_span("Linux version 6.12.0-fake (builder) #1"));
  memory().write_le(kSystemState, kRunning);
  memory().write_le(kPossibleMask, (u64{1} << options_.cpus) - 1);
  for (u32 cpu = 0; cpu < options_.cpus; ++cpu) {
    memory().write_le(kCpuOffsets + cpu * 8, cpu_offset(cpu));
    for (u32 zone = 0; zone < guest_.options().zones.size(); ++zone) {
      for (u32 list = 0; list < options_.lists; ++list) make_empty(pcp_list(cpu, zone, list));
    }
  }
  for (u32 zone = 0; zone < guest_.options().zones.size(); ++zone)
    memory().write_le(guest_.zone(zone) + kZonePageset, pageset_value(zone));
  memory().write_le(kMaxHstate, u32{2});
  memory().write_le(kPhysBase, FakeGuest::kPhysBase);
  memory().write_le(kMemSection, memory().read_u64(FakeGuest::kRootsPointer));
  for (u64 node = 0; node < 2; ++node)
    memory().write_le(kNodeData + node * 8, memory().read_u64(FakeGuest::kNodeData + node * 8));
  for (u32 i = 0; i < 2; ++i) {
    memory().write_le(pool(i), i == 0 ? u32{9} : u32{10});
    for (u32 node = 0; node < 2; ++node) make_empty(pool_list(i, node));
  }
  symbols_ = {
      {'D', "linux_banner", image(kBanner)},
      {'R', "__start_BTF", image(kBtf)},
      {'R', "__stop_BTF", image(kBtf) + btf.size()},
      {'D', "system_state", image(kSystemState)},
      {'D', "__per_cpu_offset", image(kCpuOffsets)},
      {'D', "__cpu_possible_mask", image(kPossibleMask)},
      {'D', "phys_base", image(kPhysBase)},
      {'B', "mem_section", image(kMemSection)},
      {'B', "node_data", image(kNodeData)},
      {'D', "init_top_pgt", image(Pfn{FakeGuest::kTopPfn}.address())},
      {'T', "_stext", image(GuestPhysical{FakeGuest::kPhysBase + 0x100'0000})},
  };
  if (options_.hugetlb) {
    symbols_.push_back({'B', "hstates", image(kHstates)});
    symbols_.push_back({'B', "hugetlb_max_hstate", image(kMaxHstate)});
    symbols_.push_back({'B', "hugetlb_lock", image(kHugetlbLock)});
  }
  write_kallsyms();
}

inline void FakeAllocator::write_kallsyms() {
  const FakeKallsyms made(symbols_, image(kKallsyms));
  memory().write(kKallsyms, made.bytes());
  const Kallsyms::Place& place = made.place();
  const auto key = [&](const std::string& name, GuestVirtual address) {
    guest_.set_key("SYMBOL(kallsyms_" + name + ")", fmt::format("{:x}", address.value));
  };
  key("num_syms", place.num_syms);
  key("names", place.names);
  key("token_table", place.token_table);
  key("token_index", place.token_index);
  key("offsets", place.offsets);
  key("relative_base", *place.relative_base);
}

inline std::vector<std::byte> FakeAllocator::types() const {
  const FakeAllocatorOptions& o = options_;
  FakeBtf btf;
  const u32 word = btf.integer("long unsigned int", 8);
  const u32 number = btf.integer("unsigned int", 4);
  const u32 byte = btf.integer("unsigned char", 1);
  const u32 pointer = btf.pointer(0);
  const u32 list_head =
      btf.structure("list_head", o.lru_bytes, {{"next", pointer, 0}, {"prev", pointer, 64}});
  const auto bytes = [&](u32 count) { return btf.array(byte, count); };

  const u32 links = btf.union_of("", 16, {{"lru", list_head, 0}, {"pcp_llist", word, 0}});
  const u32 page_body =
      btf.structure("", 40, {{"", links, 0}, {"mapping", pointer, 128}, {"private", word, 256}});
  const u32 tail_body = btf.structure("", 40, {{"compound_head", word, 0}});
  btf.structure("page", o.page_bytes,
                {{"flags", word, 0},
                 {"", btf.union_of("", 40, {{"", page_body, 0}, {"", tail_body, 0}}), 64},
                 {"_mapcount", number, 48 * 8},
                 {"_refcount", number, 52 * 8}});
  btf.enumeration("pageflags", {{"PG_lru", 5}});
  btf.enumeration("pagetype", {{"PGTY_buddy", 0xf0}, {"PGTY_offline", 0xf1}});

  const u32 free_area = btf.structure("free_area", FakeGuest::kFreeAreaBytes,
                                      {{"free_list", btf.array(list_head, 4), 0}, {"nr_free", word, 512}});

  std::vector<FakeBtf::Member> pcp{{"count", bytes(o.count_bytes), u64{o.count_offset} * 8},
                                   {"lists", btf.array(list_head, o.lists), kPcpLists * 8}};
  if (o.pcp_lock_bytes != 0) pcp.push_back({"lock", bytes(o.pcp_lock_bytes), u64{o.lock_offset} * 8});
  const u32 pages = btf.structure("per_cpu_pages", o.pcp_bytes, pcp);
  if (o.pageset) btf.structure("per_cpu_pageset", o.pcp_bytes + 64, {{"pcp", pages, kPcpInPageset * 8}});

  u32 lock = bytes(o.zone_lock_bytes);
  if (o.realtime) {
    const u32 mutex = btf.structure("rt_mutex_base", 32, {{"wait_lock", number, 0}, {"owner", pointer, 192}});
    lock = btf.structure("spinlock", 32, {{"lock", mutex, 0}});
  }
  std::vector<FakeBtf::Member> zone{{o.pageset ? "pageset" : "per_cpu_pageset", pointer, kZonePageset * 8},
                                    {"spanned_pages", word, 96 * 8},
                                    {"free_area", btf.array(free_area, 11), FakeGuest::kFreeAreaOffset * 8},
                                    {"lock", lock, kZoneLock * 8}};
  if (o.trylock) zone.push_back({"trylock_free_pages", word, kZoneTrylock * 8});
  const u32 zone_type = btf.structure("zone", o.zone_bytes, zone);
  btf.structure("pglist_data", FakeGuest::kNodeBytes,
                {{"node_zones", btf.array(zone_type, 4), 0},
                 {"nr_zones", number, 4096 * 8},
                 {"node_start_pfn", word, 4104 * 8},
                 {"node_spanned_pages", word, 4120 * 8},
                 {"node_id", number, 4128 * 8}});
  btf.structure("zonelist", 9 * 16, {{"_zonerefs", btf.array(bytes(16), 2 * 4 + 1), 0}});
  btf.structure("mem_section", 16, {{"section_mem_map", word, 0}, {"usage", pointer, 64}});

  btf.structure("hstate", o.hstate_bytes,
                {{"order", number, 0},
                 {"free_huge_pages_node", btf.array(number, 2), kPoolCounts * 8},
                 {"hugepage_freelists", btf.array(list_head, o.hugetlb_list_nodes), kPoolLists * 8}});
  btf.structure("cpumask", o.cpumask_bytes, {});
  btf.enumeration("migratetype", {{"MIGRATE_PCPTYPES", o.pcptypes}});
  btf.enumeration("system_states", {{"SYSTEM_BOOTING", 0}, {"SYSTEM_RUNNING", kRunning}});
  return btf.bytes();
}

}  // namespace vmsieve::testing
