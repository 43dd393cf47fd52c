// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/page_layout.h"

#include <bit>
#include <optional>

namespace vmsieve {
namespace {

// SECTION_SIZE_BITS, printed since 5.13: of x86-64 (arch/x86/include/asm/sparsemem.h), and of arm64 before
// f0b13ee23241 (5.12). Where that change came without the key (5.12.0 to 5.12.12), 30 is wrong, and the
// counters (check E) tell.
constexpr u64 kDefaultSectionShiftX86 = 27;
constexpr u64 kDefaultSectionShiftArm64 = 30;

template <typename T>
Result<T> need(std::optional<T> value, std::string_view kind, std::string_view name) {
  if (!value) {
    return make_error(ErrorKind::kUnsupported,
                      "VMCOREINFO without a readable {}({}): page structures not understood", kind, name);
  }
  return *value;
}

Error bad_value(std::string_view key, u64 value) {
  return make_error(ErrorKind::kDamaged, "VMCOREINFO's {} is {}, which cannot be right", key, value);
}

// A field of `bytes` bytes, aligned to them, inside a structure.
Result<u64> field(const VmcoreInfo& info, std::string_view name, u64 bytes, u64 struct_bytes) {
  VMSIEVE_ASSIGN(const u64 offset, need(info.offset(name), "OFFSET", name));
  if (offset % bytes != 0 || offset > struct_bytes || struct_bytes - offset < bytes)
    return bad_value(name, offset);
  return offset;
}

Result<u64> struct_size(const VmcoreInfo& info, std::string_view name) {
  VMSIEVE_ASSIGN(const u64 bytes, need(info.size(name), "SIZE", name));
  if (bytes < 8 || bytes % 8 != 0 || bytes > kMaxStructBytes) return bad_value(name, bytes);
  return bytes;
}

Result<void> read_page_layout(const VmcoreInfo& info, PageLayout& layout) {
  VMSIEVE_ASSIGN(const std::string_view page_size, need(info.string("PAGESIZE"), "PAGESIZE", "bytes"));
  if (page_size != "4096" && page_size != "16384" && page_size != "65536") {
    return Error(ErrorKind::kUnsupported, "VMCOREINFO's PAGESIZE is none of 4096, 16384 and 65536");
  }
  layout.page_shift = page_size == "4096" ? 12 : page_size == "16384" ? 14 : 16;
  VMSIEVE_ASSIGN(layout.page_bytes, struct_size(info, "page"));
  if (layout.page_bytes < 32 || layout.page_bytes > 256) return bad_value("SIZE(page)", layout.page_bytes);
  VMSIEVE_ASSIGN(layout.flags_offset, field(info, "page.flags", 8, layout.page_bytes));
  VMSIEVE_ASSIGN(layout.private_offset, field(info, "page.private", 8, layout.page_bytes));
  VMSIEVE_ASSIGN(layout.type_offset, field(info, "page._mapcount", 4, layout.page_bytes));
  VMSIEVE_ASSIGN(layout.refcount_offset, field(info, "page._refcount", 4, layout.page_bytes));
  VMSIEVE_ASSIGN(const i64 buddy,
                 need(info.number("PAGE_BUDDY_MAPCOUNT_VALUE"), "NUMBER", "PAGE_BUDDY_MAPCOUNT_VALUE"));
  // Printed as a signed long: -129 (~PG_buddy) before 6.11, PGTY_buddy << 24 as an int since 6.12.
  layout.buddy_type = static_cast<u32>(static_cast<u64>(buddy));
  // -1 is "no type", what every page in use by the kernel has; mapped pages count upwards from it.
  if ((layout.buddy_type >> 31) == 0 || layout.buddy_type == ~u32{0}) {
    return bad_value("PAGE_BUDDY_MAPCOUNT_VALUE", layout.buddy_type);
  }
  if (info.offset("page.lru")) {
    VMSIEVE_ASSIGN(layout.lru_offset, field(info, "page.lru", 8, layout.page_bytes - 8));
  }
  if (const auto offline = info.number("PAGE_OFFLINE_MAPCOUNT_VALUE")) {
    const auto type = static_cast<u32>(static_cast<u64>(*offline));
    if ((type >> 31) == 0 || type == ~u32{0} || type == layout.buddy_type)
      return bad_value("PAGE_OFFLINE_MAPCOUNT_VALUE", type);
    layout.offline_type = type;
  }
  VMSIEVE_ASSIGN(const i64 lru, need(info.number("PG_lru"), "NUMBER", "PG_lru"));
  if (lru < 0 || lru > 63) return bad_value("PG_lru", static_cast<u64>(lru));
  layout.lru_bit = static_cast<u32>(lru);
  VMSIEVE_ASSIGN(layout.orders, need(info.length("zone.free_area"), "LENGTH", "zone.free_area"));
  if (layout.orders < 1 || layout.orders > kMaxOrders)
    return bad_value("LENGTH(zone.free_area)", layout.orders);
  return {};
}

Result<void> read_section_layout(const VmcoreInfo& info, PageLayout& layout) {
  VMSIEVE_ASSIGN(layout.mem_section, need(info.symbol("mem_section"), "SYMBOL", "mem_section"));
  VMSIEVE_ASSIGN(layout.section_roots, need(info.length("mem_section"), "LENGTH", "mem_section"));
  VMSIEVE_ASSIGN(layout.section_bytes, struct_size(info, "mem_section"));
  if (layout.section_bytes < 16 || layout.section_bytes > kPageSize ||
      !std::has_single_bit(layout.section_bytes)) {
    return bad_value("SIZE(mem_section)", layout.section_bytes);
  }
  VMSIEVE_ASSIGN(layout.section_map_offset,
                 field(info, "mem_section.section_mem_map", 8, layout.section_bytes));
  if (const auto shift = info.number("SECTION_SIZE_BITS")) {
    if (*shift < 24 || *shift > 34) return bad_value("SECTION_SIZE_BITS", static_cast<u64>(*shift));
    layout.section_shift = static_cast<u64>(*shift);
  } else {
    layout.section_shift =
        info.number("kimage_voffset") ? kDefaultSectionShiftArm64 : kDefaultSectionShiftX86;
  }
  // mm/sparse.c refuses to compile otherwise: a free block never crosses a section.
  if (layout.orders - 1 + layout.page_shift > layout.section_shift)
    return bad_value("LENGTH(zone.free_area)", layout.orders);
  return {};
}

Result<void> read_zone_layout(const VmcoreInfo& info, PageLayout& layout) {
  if (const auto nodes = info.symbol("node_data")) {
    layout.node_data = *nodes;
    VMSIEVE_ASSIGN(layout.nodes, need(info.length("node_data"), "LENGTH", "node_data"));
    if (layout.nodes < 1 || layout.nodes > kMaxNodes) return bad_value("LENGTH(node_data)", layout.nodes);
  } else {
    layout.node_data = info.symbol("contig_page_data");
    layout.nodes = 0;
  }
  VMSIEVE_ASSIGN(layout.node_bytes, struct_size(info, "pglist_data"));
  VMSIEVE_ASSIGN(layout.node_zones_offset, field(info, "pglist_data.node_zones", 8, layout.node_bytes));
  VMSIEVE_ASSIGN(layout.node_nr_zones_offset, field(info, "pglist_data.nr_zones", 4, layout.node_bytes));
  VMSIEVE_ASSIGN(layout.node_start_offset, field(info, "pglist_data.node_start_pfn", 8, layout.node_bytes));
  VMSIEVE_ASSIGN(layout.node_spanned_offset,
                 field(info, "pglist_data.node_spanned_pages", 8, layout.node_bytes));
  if (!layout.node_data) {
    VMSIEVE_ASSIGN([[maybe_unused]] const u64 lru, need(info.offset("page.lru"), "OFFSET", "page.lru"));
    VMSIEVE_ASSIGN(layout.node_id_offset, field(info, "pglist_data.node_id", 4, layout.node_bytes));
  }
  VMSIEVE_ASSIGN(layout.zone_bytes, struct_size(info, "zone"));
  VMSIEVE_ASSIGN(layout.zone_spanned_offset, field(info, "zone.spanned_pages", 8, layout.zone_bytes));
  VMSIEVE_ASSIGN(layout.zone_free_area_offset, field(info, "zone.free_area", 8, layout.zone_bytes));
  VMSIEVE_ASSIGN(layout.free_area_bytes, struct_size(info, "free_area"));
  VMSIEVE_ASSIGN(layout.list_bytes, struct_size(info, "list_head"));
  VMSIEVE_ASSIGN(const u64 lists, need(info.length("free_area.free_list"), "LENGTH", "free_area.free_list"));
  // struct free_area {struct list_head free_list[MIGRATE_TYPES]; unsigned long nr_free;}
  // (include/linux/mmzone.h): nr_free must be the last thing in it, or this is another structure.
  if (lists < 1 || lists > 64 || layout.list_bytes != 16 ||
      lists * layout.list_bytes + 8 != layout.free_area_bytes) {
    return bad_value("SIZE(free_area)", layout.free_area_bytes);
  }
  layout.nr_free_offset = lists * layout.list_bytes;
  if (layout.orders * layout.free_area_bytes > layout.zone_bytes - layout.zone_free_area_offset) {
    return bad_value("SIZE(zone)", layout.zone_bytes);
  }
  return {};
}

}  // namespace

Result<PageLayout> PageLayout::from(const VmcoreInfo& info) {
  PageLayout layout;
  VMSIEVE_TRY(read_page_layout(info, layout));
  VMSIEVE_TRY(read_section_layout(info, layout));
  VMSIEVE_TRY(read_zone_layout(info, layout));
  return layout;
}

}  // namespace vmsieve
