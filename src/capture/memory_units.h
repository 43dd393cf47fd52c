// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <vector>

#include "vmsieve/capture/page_plan.h"
#include "vmsieve/qemu/page_residency.h"
#include "vmsieve/qemu/ram_layout.h"

namespace vmsieve {

/// A VM's memory cut into the pieces that are protected and released at once: 2 MiB of QEMU's address space,
/// or a huge page where that is larger. A transparent huge page that is released whole stays whole.
class MemoryUnits {
 public:
  static constexpr u64 kUnitBytes = 2 * kMiB;

  explicit MemoryUnits(const RamLayout& layout);

  std::size_t count() const { return count_; }
  /// The host addresses of a unit: a block's first and last one may be shorter.
  ByteRange host(std::size_t unit) const;
  /// The unit of a host address; none when it is in no block.
  std::optional<std::size_t> at(u64 host_address) const;

  /// Whose unit it is, and which pages of the block it has.
  struct Place {
    u32 block = 0;
    BlockPages pages;
  };
  Place place(std::size_t unit) const;
  /// The host addresses of guest-physical memory; none when it is not all in one mapping of `layout`, which
  /// must be the one that this was made of.
  std::optional<ByteRange> host(const RamLayout& layout, GuestPhysical address, u64 bytes) const;
  /// The host addresses of a block, in whole pages of its memory.
  ByteRange block(u32 index) const { return blocks_[index].host; }
  std::size_t blocks() const { return blocks_.size(); }
  std::size_t first_unit(u32 block) const { return blocks_[block].first_unit; }
  u64 unit_bytes(u32 block) const { return blocks_[block].unit_bytes; }

 private:
  struct Block {
    ByteRange host;
    u64 unit_bytes = kUnitBytes;
    std::size_t first_unit = 0;
    std::size_t units = 0;
  };
  const Block& block_of(std::size_t unit, u32* index = nullptr) const;

  std::vector<Block> blocks_;    // by RamLayout::blocks
  std::vector<u32> by_address_;  // indices into blocks_, ascending by address; without empty ones
  std::size_t count_ = 0;
};

/// The chunks of a plan, none of which crosses the border of a unit.
struct UnitChunks {
  std::vector<Chunk> chunks;             ///< in the order of blocks and pages
  std::vector<std::size_t> first_chunk;  ///< of each unit; one more at the end
};

UnitChunks cut_unit_chunks(const PagePlan& plan, const MemoryUnits& units, u64 max_pages);

}  // namespace vmsieve
