// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/vmcoreinfo.h"

namespace vmsieve {

/// More orders than this are refused: MAX_PAGE_ORDER + 1 is 11 on x86-64, 14 at most elsewhere
/// (arch/arm64/Kconfig ARCH_FORCE_MAX_ORDER).
inline constexpr u64 kMaxOrders = 16;

/// What the kernel's page structures look like, as VMCOREINFO tells it; every number here is checked
/// to be sane, so that code over it needs no checks of its own.
struct PageLayout {
  // struct page
  u64 page_bytes = 64;       ///< multiple of 8, 32 to 256
  u64 flags_offset = 0;      ///< u64, aligned
  u64 private_offset = 40;   ///< u64, aligned; of a free block's head: its order
  u64 type_offset = 48;      ///< u32, aligned: _mapcount, which is also page_type
  u64 refcount_offset = 52;  ///< u32, aligned
  u64 lru_offset = 8;  ///< struct list_head, aligned, where VMCOREINFO has it; in a tail page bit 0 of its
                       ///< first word is set
  u32 buddy_type = 0;  ///< value at type_offset of a free block's head
  /// Value at type_offset of pages whose content a driver has given away (balloon, virtio-mem).
  std::optional<u32> offline_type;
  u32 lru_bit = 0;  ///< bit of flags: on a page-reclaim list
  u64 orders = 11;  ///< free blocks are 2^0 to 2^(orders - 1) pages; 1 to kMaxOrders

  // struct mem_section
  u64 section_bytes = 16;      ///< a power of two, 16 to 4096
  u64 section_map_offset = 0;  ///< u64, aligned
  u64 section_roots = 0;       ///< pointers in the root array
  u64 section_shift = 27;      ///< a section is 2^section_shift bytes; 24 to 34
  GuestVirtual mem_section;    ///< the root array, or a pointer to it

  // struct pglist_data, struct zone, struct free_area
  GuestVirtual node_data;  ///< array of pointers, or without NUMA the one structure
  u64 nodes = 1;           ///< pointers in node_data; 0 without NUMA
  u64 node_bytes = 0;
  u64 node_zones_offset = 0;     ///< array of struct zone
  u64 node_nr_zones_offset = 0;  ///< u32
  u64 node_start_offset = 0;     ///< u64, a page frame number
  u64 node_spanned_offset = 0;   ///< u64, pages
  u64 zone_bytes = 0;
  u64 zone_spanned_offset = 0;    ///< u64, pages
  u64 zone_free_area_offset = 0;  ///< array of struct free_area, one for each order
  u64 free_area_bytes = 0;
  u64 nr_free_offset = 0;  ///< in struct free_area: u64

  u64 pages_per_section() const { return u64{1} << (section_shift - kPageShift); }

  /// kUnsupported naming the key when VMCOREINFO lacks one that is needed, kDamaged naming it when a
  /// value cannot be right.
  static Result<PageLayout> from(const VmcoreInfo& info);
};

}  // namespace vmsieve
