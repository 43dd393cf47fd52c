// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "vmsieve/base/units.h"
#include "vmsieve/image/memory_index.h"
#include "vmsieve/qemu/live_memory.h"
#include "vmsieve/qemu/ram_layout.h"

namespace vmsieve {

/// Page indices [first_page, first_page + pages) of a block.
struct BlockPages {
  u64 first_page = 0;
  u64 pages = 0;
  friend bool operator==(const BlockPages&, const BlockPages&) = default;
};

/// What to do with one block: which pages are known without reading, which must be read.
struct BlockPlan {
  std::vector<PageRun> known;    ///< kFree, and kFill of zeros for what was never touched; ascending
  std::vector<BlockPages> read;  ///< ascending; together with `known` they cover the block
};

/// What to do with the memory of a stopped guest.
struct PagePlan {
  std::vector<BlockPlan> blocks;  ///< by RamLayout::blocks
  u64 free_pages = 0;
  u64 untouched_pages = 0;
  u64 read_pages = 0;
};

/// Translates free guest page frames into pages of blocks. Only blocks with `guest_ram` are given
/// free pages: a new QEMU finds nothing but zeros there, whereas it fills the others itself. A
/// page that only some of its mappings call free is not free. Result by block, ascending, merged.
std::vector<std::vector<BlockPages>> free_pages_of_blocks(const RamLayout& layout,
                                                          std::span<const PfnRange> free);

/// Which pages of [first, first + count) of a block may hold something: LiveMemory::resident_block.
using ResidentFunction = std::function<std::vector<LiveMemory::PageRun>(u32 block, u64 first, u64 count)>;

/// What to ask `resident` about: every run of pages, or only runs that are long enough to be worth it, short
/// ones being read.
enum class Ask { kAlways, kAboutLongRuns };

/// Puts the plan together. `fill` is what the guest expects to find in free pages.
PagePlan plan_pages(const RamLayout& layout, std::span<const PfnRange> free, u8 fill,
                    const ResidentFunction& resident, Ask ask = Ask::kAboutLongRuns);

/// Up to `max_pages` pages of one block that are read, encoded and stored together.
struct Chunk {
  u32 block = 0;
  std::size_t list = 0;  ///< of CapturePipeline::Outcome::runs: where it is told what became of the pages
  u64 pages = 0;
  std::vector<BlockPages> runs;  ///< ascending
};

/// Cuts what must be read into chunks, in the order of blocks and pages.
std::vector<Chunk> cut_chunks(const PagePlan& plan, u64 max_pages);

}  // namespace vmsieve
