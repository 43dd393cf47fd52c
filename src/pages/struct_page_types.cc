// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/struct_page_types.h"

#include <algorithm>
#include <array>

#include "vmsieve/base/endian.h"
#include "vmsieve/guest/mappings.h"

namespace vmsieve {
namespace {

// Low bits of page->mapping.
constexpr u64 kMappingAnon = 1;
constexpr u64 kMappingFlags = 3;
constexpr std::size_t kProcessesAsked = 8;
constexpr u64 kTablesAsked = 64;
constexpr u32 kTypeShift = 24;  // PGTY_* since 6.12

u64 mask_of(std::optional<i64> bit) { return bit && *bit >= 0 && *bit < 64 ? u64{1} << *bit : 0; }

bool has_type(u32 type) { return (type >> 31) != 0 && type != ~u32{0}; }

std::optional<u64> read_struct_u32(const GuestMemory& memory, PageTableRoot tables, const PageLayout& layout,
                                   const std::vector<MemorySection>& sections, Pfn pfn, u64 offset) {
  for (const MemorySection& section : sections) {
    if (!PfnRange{section.first, layout.pages_per_section()}.contains(pfn)) continue;
    std::array<std::byte, 4> bytes;
    const GuestVirtual at = section.memmap + (pfn.value - section.first.value) * layout.page_bytes + offset;
    if (!read_virtual(memory, tables, at, bytes).ok()) return std::nullopt;
    return load_le<u32>(bytes.data());
  }
  return std::nullopt;
}

// The type that most of the lowest page tables of some processes carry.
std::optional<u32> type_of_page_tables(const GuestMemory& memory, const LinuxKernel& kernel,
                                       const PageLayout& layout, const std::vector<MemorySection>& sections,
                                       const GuestProcesses& processes) {
  std::vector<u32> types;
  std::size_t asked = 0;
  for (const GuestProcess& process : processes.processes) {
    if (process.page_tables.value == 0 || asked == kProcessesAsked) continue;
    const auto top = translate(memory, kernel.page_tables(), process.page_tables);
    if (!top.ok()) continue;
    ++asked;
    const MappingVisitor visitor{{}, [&](GuestPhysical table, u32 level) {
                                   if (level != 1) return;
                                   const auto type =
                                       read_struct_u32(memory, kernel.page_tables(), layout, sections,
                                                       Pfn{table}, layout.type_offset);
                                   if (type && has_type(static_cast<u32>(*type)))
                                     types.push_back(static_cast<u32>(*type));
                                 }};
    walk_mappings(memory, {GuestPhysical{round_down(top->value, kPageSize)}, kernel.page_tables().format},
                  GuestVirtual{0}, GuestVirtual{(u64{1} << 47) - 1}, kTablesAsked, visitor);
  }
  if (types.empty()) return std::nullopt;
  std::sort(types.begin(), types.end());
  const u32 middle = types[types.size() / 2];
  const auto same = static_cast<std::size_t>(std::count(types.begin(), types.end(), middle));
  return same * 2 > types.size() ? std::optional(middle) : std::nullopt;
}

}  // namespace

Result<StructPageTypes> StructPageTypes::make(const GuestMemory& memory, const LinuxKernel& kernel,
                                              const KernelSymbols& symbols, const PageLayout& layout,
                                              const std::vector<MemorySection>& sections,
                                              const GuestProcesses& processes) {
  StructPageTypes types(layout);
  const VmcoreInfo& info = kernel.vmcoreinfo();
  const Btf& btf = symbols.types();
  const auto word = [&](std::initializer_list<std::string_view> names) -> std::optional<u64> {
    for (const std::string_view name : names) {
      const auto offset = info.offset(name);
      if (offset && *offset % 8 == 0 && *offset + 8 <= layout.page_bytes) return offset;
    }
    return std::nullopt;
  };
  const auto mapping = word({"page.mapping"});
  const auto head = word({"page.compound_head", "page.compound_info"});
  if (!mapping || !head)
    return Error(ErrorKind::kUnsupported,
                 "VMCOREINFO does not show where struct page has its mapping and head");
  types.mapping_offset_ = *mapping;
  types.head_offset_ = *head;
  types.reserved_bit_ = mask_of(btf.enumerator("PG_reserved"));
  types.dirty_bit_ = mask_of(btf.enumerator("PG_dirty"));
  types.swap_backed_bit_ = mask_of(btf.enumerator("PG_swapbacked"));
  types.swap_cache_bit_ = mask_of(btf.enumerator("PG_swapcache"));
  types.head_bit_ = mask_of(btf.enumerator("PG_head"));
  if (types.reserved_bit_ == 0 || types.dirty_bit_ == 0 || types.swap_backed_bit_ == 0)
    return Error(ErrorKind::kUnsupported, "the kernel's types do not show its page flags");
  types.slab_bit_ = mask_of(info.number("PG_slab"));

  const auto known_type = [&](std::string_view name) -> std::optional<u32> {
    const auto value = info.number(name);
    if (!value) return std::nullopt;
    return static_cast<u32>(static_cast<u64>(*value)) & types.type_mask_;
  };
  if (btf.enumerator("PGTY_buddy")) types.type_mask_ = 0xff00'0000;
  types.slab_type_ = known_type("PAGE_SLAB_MAPCOUNT_VALUE");
  types.hugetlb_type_ = known_type("PAGE_HUGETLB_MAPCOUNT_VALUE");
  if (const auto large = btf.enumerator("PGTY_large_kmalloc"))
    types.large_type_ = static_cast<u32>(*large) << kTypeShift;
  if (const auto table = btf.enumerator("PGTY_table")) {
    types.table_type_ = static_cast<u32>(*table) << kTypeShift;
  } else if (const auto seen = type_of_page_tables(memory, kernel, layout, sections, processes)) {
    types.table_type_ = *seen & types.type_mask_;
  }
  const auto dtor = info.number("HUGETLB_PAGE_DTOR");
  auto dtor_offset = info.offset("page.compound_dtor");
  if (const auto folio = info.offset("folio._folio_dtor");
      !dtor_offset && folio && *folio >= layout.page_bytes)
    dtor_offset = *folio - layout.page_bytes;
  if (dtor && dtor_offset && *dtor_offset < layout.page_bytes) {
    types.dtor_offset_ = *dtor_offset;
    types.hugetlb_dtor_ = static_cast<u8>(*dtor);
  }
  types.second_hugetlb_bit_ = mask_of(info.number("PG_hugetlb"));
  return types;
}

std::optional<PageClass> StructPageTypes::typed(u32 type) const {
  const u32 value = type & type_mask_;
  if (value == slab_type_ || value == large_type_) return PageClass::kSlab;
  if (value == table_type_) return PageClass::kPageTables;
  if (value == hugetlb_type_) return PageClass::kHugetlb;
  if (layout_.offline_type && value == (*layout_.offline_type & type_mask_)) return PageClass::kOffline;
  if (value == (layout_.buddy_type & type_mask_)) return PageClass::kUnused;
  // 0xff in the top byte is a count that went below zero, not a type.
  if (type_mask_ != ~u32{0} && value == type_mask_) return std::nullopt;
  return PageClass::kKernelOther;
}

bool StructPageTypes::is_hugetlb(const std::byte* page) const {
  const std::byte* const second = page + layout_.page_bytes;
  if ((load_le<u64>(second + head_offset_) & 1) == 0) return false;
  if (dtor_offset_) return static_cast<u8>(second[*dtor_offset_]) == hugetlb_dtor_;
  return (load_le<u64>(second + layout_.flags_offset) & second_hugetlb_bit_) != 0;
}

PageClass StructPageTypes::kernel_page(const std::byte* page, u64 flags) const {
  if ((flags & reserved_bit_) != 0) return PageClass::kReserved;
  const u32 references = load_le<u32>(page + layout_.refcount_offset);
  if (references == 0) return PageClass::kUnused;
  // An allocation larger than the slab caches' largest is a compound page with one reference, which the
  // kernel counts as slab (mm/slub.c, kmalloc_large); it has a type of its own since 6.15 only. Fragments
  // of network buffers are compound too, but hold many references (mm/page_frag_cache.c).
  const bool large_allocation = (flags & head_bit_) != 0 && references == 1 && !large_type_;
  return large_allocation ? PageClass::kSlab : PageClass::kKernelOther;
}

StructPage StructPageTypes::read(const std::byte* page) const {
  StructPage result;
  if ((load_le<u64>(page + head_offset_) & 1) != 0) {
    result.tail = true;
    return result;
  }
  const u64 flags = load_le<u64>(page + layout_.flags_offset);
  const u32 type = load_le<u32>(page + layout_.type_offset);
  if ((flags & slab_bit_) != 0) {
    result.page_class = PageClass::kSlab;
    return result;
  }
  if (has_type(type)) {
    if (const auto known = typed(type)) {
      result.page_class = *known;
      return result;
    }
  }
  if ((flags & head_bit_) != 0 && !hugetlb_type_ && is_hugetlb(page)) {
    result.page_class = PageClass::kHugetlb;
    return result;
  }
  const u64 mapping = load_le<u64>(page + mapping_offset_);
  const bool pointer = (mapping >> 63) != 0 && load_le<u32>(page + layout_.refcount_offset) != 0;
  if (pointer && (mapping & kMappingAnon) != 0) {
    result.page_class = PageClass::kAnonymous;
    result.swap_cache = (flags & swap_cache_bit_) != 0;
  } else if (pointer && (mapping & kMappingFlags) == 0) {
    result.mapping = mapping;
    result.page_class = (flags & swap_backed_bit_) != 0 ? PageClass::kShared
                        : (flags & dirty_bit_) != 0     ? PageClass::kCacheDirty
                                                        : PageClass::kCacheClean;
  } else {
    result.page_class = kernel_page(page, flags);
  }
  return result;
}

}  // namespace vmsieve
