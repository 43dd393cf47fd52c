// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>
#include <span>
#include <vector>

#include "vmsieve/pages/page_layout.h"

namespace vmsieve {

/// Why a page that is flagged as the head of a free block is not believed (check F).
enum class BlockFault : u8 {
  kOrder,      ///< its order is none that the allocator knows
  kAlignment,  ///< its page frame number is no multiple of its length
  kHeadInUse,  ///< the head has a reference count
  kInterior,   ///< a page inside has a reference count or a type
  kNotRam,     ///< part of it is not RAM (found by the caller)
};
std::string_view to_string(BlockFault fault);

/// A free block, or a malformed one with its fault in place of the order: 4 bytes, since a
/// fragmented guest has millions.
class ScannedBlock {
 public:
  /// `index` is that of the head's page in its section, below 2^28; `order` is below kMaxOrders.
  ScannedBlock(u64 index, u64 order) : packed_(static_cast<u32>(index << 4 | order)) {}
  ScannedBlock(u64 index, BlockFault fault) : ScannedBlock(index, static_cast<u64>(fault)) {}

  u64 index() const { return packed_ >> 4; }
  u64 order() const { return packed_ & 0xf; }
  BlockFault fault() const { return static_cast<BlockFault>(packed_ & 0xf); }

 private:
  u32 packed_;
};
static_assert(kMaxOrders <= 16);

/// A page with no user and no type, in no flagged block, and no tail of a larger page: it may be on one
/// of the allocator's lists that set no flag. The words of its list_head, unchecked.
struct UnlistedPage {
  u64 index = 0;  ///< in its section
  u64 next = 0;
  u64 prev = 0;
};

/// Guest-virtual bytes [first, first + bytes).
struct VirtualRange {
  u64 first = 0;
  u64 bytes = 0;

  bool contains(u64 address) const { return address - first < bytes; }
};

/// Where a free list of blocks of an order leads to when it leaves the struct pages.
struct FreeListEnd {
  u64 address = 0;  ///< guest-virtual
  u32 order = 0;

  friend auto operator<=>(const FreeListEnd&, const FreeListEnd&) = default;
};

struct SectionScan {
  std::vector<ScannedBlock> blocks;  ///< ascending, not overlapping, aligned, whole
  std::vector<ScannedBlock> malformed;
  std::vector<FreeListEnd> list_ends;  ///< of `blocks`; only where the layout has no node_data
  std::vector<UnlistedPage> unlisted;  ///< ascending; only when asked for
  std::vector<u32> offline;            ///< indices of PageOffline pages, ascending; only when asked for
};

/// What to look for besides free blocks.
struct ScanWants {
  bool unlisted = false;
  bool offline = false;  ///< needs PageLayout::offline_type
};

/// Finds the free blocks among struct pages and appends them to `out`.
///
/// `memmap` is where all struct pages are. `structs` holds whole struct pages, the first for page
/// `first_index` of its section, their number and `first_index` multiples of the longest block, so that no
/// block crosses the end. Each struct page is touched once, at one cache line; this loop is what the guest's
/// pause pays for.
///
/// A block is one whose head carries the free flag with a possible order at an aligned index, and
/// whose pages all have reference count 0 and, the head apart, no type. After a malformed head the
/// scan goes on with the very next page.
void scan_struct_pages(const PageLayout& layout, VirtualRange memmap, std::span<const std::byte> structs,
                       u64 first_index, ScanWants wants, SectionScan& out);

}  // namespace vmsieve
