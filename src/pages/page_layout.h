// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/vmcoreinfo.h"

namespace vmsieve {

/// More orders than this are refused: MAX_PAGE_ORDER + 1 is 11 on x86-64, 14 at most elsewhere
/// (arch/arm64/Kconfig ARCH_FORCE_MAX_ORDER).
inline constexpr u64 kMaxOrders = 16;
/// More nodes than this are refused: NODES_SHIFT is at most 10.
inline constexpr u64 kMaxNodes = 1024;
/// Structures longer than this are refused.
inline constexpr u64 kMaxStructBytes = 4 * kMiB;
/// struct list_head: next and prev, u64 each.
inline constexpr u64 kListHeadBytes = 16;

/// What the guest's own bytes make impossible is "no such thing"; a guest that cannot be read is not.
inline bool guest_says_no(const Error& error) {
  return error.kind() == ErrorKind::kNotFound || error.kind() == ErrorKind::kDamaged;
}

/// What the kernel's page structures look like, as VMCOREINFO tells it; every number here is checked
/// to be sane, so that code over it needs no checks of its own.
///
/// The kernel's pages ("pages" here and in struct page, zone and section numbers) may be longer than
/// the frames of 4 KiB that everything outside of this room counts in (Pfn): frames_per_page() converts.
struct PageLayout {
  u64 page_shift = 12;  ///< the kernel's page is 2^page_shift bytes: 12, 14 or 16

  // struct page
  u64 page_bytes = 64;       ///< multiple of 8, 32 to 256
  u64 flags_offset = 0;      ///< u64, aligned
  u64 private_offset = 40;   ///< u64, aligned; of a free block's head: its order
  u64 type_offset = 48;      ///< u32, aligned: _mapcount, which is also page_type
  u64 refcount_offset = 52;  ///< u32, aligned
  u64 lru_offset = 8;  ///< struct list_head, aligned, where VMCOREINFO has it; in a tail page bit 0 of its
                       ///< first word is set, a free block's head is linked to others by it
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
  /// Array of pointers, or without NUMA the one structure. None where VMCOREINFO does not say where it
  /// is (arm64): then the free lists lead there.
  std::optional<GuestVirtual> node_data;
  u64 nodes = 1;  ///< pointers in node_data; 0 without NUMA
  u64 node_bytes = 0;
  u64 node_zones_offset = 0;     ///< array of struct zone
  u64 node_nr_zones_offset = 0;  ///< u32
  u64 node_start_offset = 0;     ///< u64, a page frame number
  u64 node_spanned_offset = 0;   ///< u64, pages
  u64 node_id_offset = 0;        ///< u32; used only without node_data
  u64 zone_bytes = 0;
  u64 zone_spanned_offset = 0;    ///< u64, pages
  u64 zone_free_area_offset = 0;  ///< array of struct free_area, one for each order
  u64 free_area_bytes = 0;        ///< lists of list_bytes each, then nr_free
  u64 list_bytes = 16;            ///< struct list_head: next, prev
  u64 nr_free_offset = 0;         ///< in struct free_area: u64

  u64 frame_shift() const { return page_shift - kPageShift; }
  u64 frames_per_page() const { return u64{1} << frame_shift(); }
  u64 pages_per_section() const { return u64{1} << (section_shift - page_shift); }
  u64 frames_per_section() const { return u64{1} << (section_shift - kPageShift); }

  /// kUnsupported naming the key when VMCOREINFO lacks one that is needed, kDamaged naming it when a
  /// value cannot be right.
  static Result<PageLayout> from(const VmcoreInfo& info);
};

}  // namespace vmsieve
