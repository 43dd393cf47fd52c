// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/page_plan.h"

#include <algorithm>

namespace vmsieve {

namespace {

/// From how many pages on it is worth asking whether they were ever touched. Reading an untouched
/// 4 KiB page allocates nothing (LiveMemory) and costs less than the question; a used kernel has
/// thousands of short runs. A huge page would be allocated, so those are always asked about.
constexpr u64 kAskAboutPages = 256;

/// Sorts and merges; drops empty runs.
void normalise(std::vector<BlockPages>& runs) {
  std::sort(runs.begin(), runs.end(),
            [](const BlockPages& a, const BlockPages& b) { return a.first_page < b.first_page; });
  std::vector<BlockPages> merged;
  for (const BlockPages& run : runs) {
    if (run.pages == 0) continue;
    if (!merged.empty() && run.first_page <= merged.back().first_page + merged.back().pages) {
      const u64 end = std::max(merged.back().first_page + merged.back().pages, run.first_page + run.pages);
      merged.back().pages = end - merged.back().first_page;
    } else {
      merged.push_back(run);
    }
  }
  runs = std::move(merged);
}

/// a without b; both normalised.
std::vector<BlockPages> subtract(const std::vector<BlockPages>& a, const std::vector<BlockPages>& b) {
  std::vector<BlockPages> out;
  std::size_t j = 0;
  for (const BlockPages& run : a) {
    u64 at = run.first_page;
    const u64 end = run.first_page + run.pages;
    while (j < b.size() && b[j].first_page + b[j].pages <= at) ++j;
    for (std::size_t k = j; k < b.size() && b[k].first_page < end; ++k) {
      if (b[k].first_page > at) out.push_back({at, b[k].first_page - at});
      at = std::max(at, b[k].first_page + b[k].pages);
    }
    if (at < end) out.push_back({at, end - at});
  }
  return out;
}

/// The part of a mapping that `range` covers, as pages of the mapping's block. Pages that the
/// mapping holds only in part are left out.
BlockPages overlap(const RamMapping& mapping, u64 first_pfn, u64 end_pfn) {
  if (mapping.address.value % kPageSize != 0 || mapping.block_offset % kPageSize != 0) return {};
  const u64 map_first = mapping.address.value >> kPageShift;
  const u64 map_end = map_first + (mapping.bytes >> kPageShift);
  const u64 first = std::max(first_pfn, map_first);
  const u64 end = std::min(end_pfn, map_end);
  if (first >= end) return {};
  return {(mapping.block_offset >> kPageShift) + (first - map_first), end - first};
}

}  // namespace

std::vector<std::vector<BlockPages>> free_pages_of_blocks(const RamLayout& layout,
                                                          std::span<const PfnRange> free) {
  std::vector<std::vector<BlockPages>> free_of(layout.blocks.size());
  std::vector<std::vector<BlockPages>> used_of(layout.blocks.size());
  for (const RamMapping& mapping : layout.mappings) {
    if (mapping.block >= layout.blocks.size() || !layout.blocks[mapping.block].guest_ram) continue;
    const u64 map_first = mapping.address.value >> kPageShift;
    const u64 map_end = map_first + (mapping.bytes >> kPageShift);
    // First range that ends behind the mapping's start.
    auto range = std::partition_point(free.begin(), free.end(),
                                      [&](const PfnRange& r) { return r.end() <= map_first; });
    u64 at = map_first;
    for (; range != free.end() && range->first.value < map_end; ++range) {
      if (range->first.value > at) used_of[mapping.block].push_back(overlap(mapping, at, range->first.value));
      free_of[mapping.block].push_back(overlap(mapping, range->first.value, range->end()));
      at = std::max(at, range->end());
    }
    if (at < map_end) used_of[mapping.block].push_back(overlap(mapping, at, map_end));
  }
  for (std::size_t block = 0; block < free_of.size(); ++block) {
    normalise(free_of[block]);
    normalise(used_of[block]);
    free_of[block] = subtract(free_of[block], used_of[block]);
  }
  return free_of;
}

PagePlan plan_pages(const RamLayout& layout, std::span<const PfnRange> free, u8 fill,
                    const ResidentFunction& resident, Ask ask) {
  PagePlan plan;
  plan.blocks.resize(layout.blocks.size());
  const auto free_of = free_pages_of_blocks(layout, free);
  for (u32 index = 0; index < layout.blocks.size(); ++index) {
    BlockPlan& block = plan.blocks[index];
    const u64 total = round_up(layout.blocks[index].used_bytes, kPageSize) >> kPageShift;
    std::vector<BlockPages> free_runs = free_of[index];
    // A free page behind the block's end would be a mapping that lies; it is not there to be saved.
    std::erase_if(free_runs, [&](const BlockPages& run) { return run.first_page + run.pages > total; });

    const bool cheap_to_read =
        ask == Ask::kAboutLongRuns && layout.blocks[index].host_page_bytes == kPageSize;
    for (const BlockPages& used : subtract({{0, total}}, free_runs)) {
      if (cheap_to_read && used.pages < kAskAboutPages) {
        block.read.push_back(used);
        continue;
      }
      for (const LiveMemory::PageRun& run : resident(index, used.first_page, used.pages)) {
        block.read.push_back({run.first, run.count});
      }
    }
    normalise(block.read);
    std::vector<BlockPages> touched = block.read;
    touched.insert(touched.end(), free_runs.begin(), free_runs.end());
    normalise(touched);
    for (const BlockPages& run : subtract({{0, total}}, touched)) {
      block.known.push_back({.first_page = run.first_page, .pages = run.pages, .kind = RunKind::kFill});
      plan.untouched_pages += run.pages;
    }
    for (const BlockPages& run : free_runs) {
      block.known.push_back(
          {.first_page = run.first_page, .pages = run.pages, .kind = RunKind::kFree, .fill = fill});
      plan.free_pages += run.pages;
    }
    std::sort(block.known.begin(), block.known.end(),
              [](const PageRun& a, const PageRun& b) { return a.first_page < b.first_page; });
    for (const BlockPages& run : block.read) plan.read_pages += run.pages;
  }
  return plan;
}

std::vector<Chunk> cut_chunks(const PagePlan& plan, u64 max_pages) {
  VMSIEVE_CHECK(max_pages > 0);
  std::vector<Chunk> chunks;
  for (u32 index = 0; index < plan.blocks.size(); ++index) {
    Chunk* chunk = nullptr;
    for (BlockPages run : plan.blocks[index].read) {
      while (run.pages > 0) {
        if (chunk == nullptr || chunk->pages == max_pages) {
          chunks.push_back({.block = index, .list = index, .pages = 0, .runs = {}});
          chunk = &chunks.back();
        }
        const u64 take = std::min(run.pages, max_pages - chunk->pages);
        chunk->runs.push_back({run.first_page, take});
        chunk->pages += take;
        run = {run.first_page + take, run.pages - take};
      }
    }
  }
  return chunks;
}

}  // namespace vmsieve
