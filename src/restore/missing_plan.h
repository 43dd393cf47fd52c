// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vmsieve/base/units.h"
#include "vmsieve/image/memory_index.h"
#include "vmsieve/qemu/page_residency.h"
#include "vmsieve/qemu/ram_layout.h"

namespace vmsieve {

/// Pages of a checkpoint, and the host addresses in the new QEMU at which they belong.
struct MissingPiece {
  std::optional<u64> frame;  ///< index into MemoryIndex::frames; none: every byte is `fill`
  u8 fill = 0;
  u64 page_in_frame = 0;
  u64 address = 0;  ///< of the first page
  u64 pages = 0;
};

/// What is brought in at once: all pages of a frame, a part of a run of one repeated byte, or a huge page.
struct MissingJob {
  std::vector<MissingPiece> pieces;
  /// A huge page: goes in as a whole, zeros where no piece is.
  std::optional<ByteRange> huge_page;
};

/// What is to be brought into a new QEMU while its guest runs already, and what is where.
///
/// Pages that read as zeros belong to no job: nobody needs to bring them.
class MissingPlan {
 public:
  /// Blocks of `index` that are brought in: `lazy[i]` says whether block i is. `layout` is the new QEMU's; it
  /// has a block of the same name and size for each of them (check_blocks()).
  MissingPlan(const MemoryIndex& index, const std::vector<bool>& lazy, const RamLayout& layout);

  /// In the order in which the frames lie in the objects.
  const std::vector<MissingJob>& jobs() const { return jobs_; }
  /// The host addresses of all blocks, in whole pages of their memory.
  const std::vector<ByteRange>& ranges() const { return ranges_; }
  u64 pages() const { return pages_; }  ///< of all jobs

  struct Place {
    std::optional<std::size_t> job;  ///< none: reads as zeros
    ByteRange zeros;                 ///< if none: how far around the address that is so
    u64 page_bytes = kPageSize;      ///< of the memory
  };
  /// The jobs that bring pages of these frames of the index, in their order, none twice.
  std::vector<std::size_t> jobs_of(std::span<const u64> frames) const;
  /// What belongs at a host address; none when it is in no block.
  std::optional<Place> find(u64 address) const;

 private:
  struct Segment {
    u64 address = 0;
    u64 pages = 0;
    std::size_t job = 0;
  };
  struct Block {
    ByteRange host;
    u64 page_bytes = kPageSize;
    std::vector<Segment> segments;  // ascending; what is between them reads as zeros
  };
  void add_huge_pages(const BlockIndex& from, Block& block);

  std::vector<MissingJob> jobs_;
  std::vector<ByteRange> ranges_;
  std::vector<Block> blocks_;  // ascending by address
  u64 pages_ = 0;
};

}  // namespace vmsieve
