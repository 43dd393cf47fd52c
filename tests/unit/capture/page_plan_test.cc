// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/page_plan.h"

#include <gtest/gtest.h>

namespace vmsieve {
namespace {

/// Main memory of 100 pages whose second half continues at 4 GiB, and 4 pages of video memory.
RamLayout split_layout(u64 host_page_bytes = 2 * kMiB) {
  RamLayout layout;
  layout.blocks = {{.name = "pc.ram",
                    .used_bytes = 100 * kPageSize,
                    .max_bytes = 100 * kPageSize,
                    .host_page_bytes = host_page_bytes,
                    .guest_ram = true},
                   {.name = "vga.vram", .used_bytes = 4 * kPageSize, .max_bytes = 4 * kPageSize}};
  layout.mappings = {{GuestPhysical{0}, 50 * kPageSize, 0, 0},
                     {GuestPhysical{3 * kGiB}, 4 * kPageSize, 1, 0},
                     {GuestPhysical{4 * kGiB}, 50 * kPageSize, 0, 50 * kPageSize}};
  return layout;
}

constexpr u64 kHigh = 4 * kGiB / kPageSize;

std::vector<LiveMemory::PageRun> all_resident(u32, u64 first, u64 count) { return {{first, count}}; }

/// How often each page of a block stands in the plan: must be once.
std::vector<int> coverage(const BlockPlan& plan, u64 pages) {
  std::vector<int> seen(pages, 0);
  for (const PageRun& run : plan.known) {
    for (u64 i = 0; i < run.pages; ++i) ++seen.at(run.first_page + i);
  }
  for (const BlockPages& run : plan.read) {
    for (u64 i = 0; i < run.pages; ++i) ++seen.at(run.first_page + i);
  }
  return seen;
}

TEST(PagePlan, FreeFramesAboveTheHoleBecomePagesOfTheBlock) {
  const PfnRange free[] = {{Pfn{10}, 5}, {Pfn{kHigh + 1}, 2}};
  const auto runs = free_pages_of_blocks(split_layout(), free);
  EXPECT_EQ(runs[0], (std::vector<BlockPages>{{10, 5}, {51, 2}}));
  EXPECT_TRUE(runs[1].empty());
}

TEST(PagePlan, VideoMemoryIsNeverFree) {
  const PfnRange free[] = {{Pfn{3 * kGiB / kPageSize}, 4}};
  EXPECT_TRUE(free_pages_of_blocks(split_layout(), free)[1].empty());
}

TEST(PagePlan, FramesThatAreNoRamAreNobodysPages) {
  const PfnRange free[] = {{Pfn{49}, 10}};
  EXPECT_EQ(free_pages_of_blocks(split_layout(), free)[0], (std::vector<BlockPages>{{49, 1}}));
}

TEST(PagePlan, APageThatOneOfItsMappingsUsesIsNotFree) {
  RamLayout layout = split_layout();
  layout.mappings.push_back({GuestPhysical{8 * kGiB}, 4 * kPageSize, 0, 10 * kPageSize});
  const PfnRange free[] = {{Pfn{8}, 10}};
  EXPECT_EQ(free_pages_of_blocks(layout, free)[0], (std::vector<BlockPages>{{8, 2}, {14, 4}}));
}

TEST(PagePlan, EveryPageStandsInThePlanOnce) {
  const PfnRange free[] = {{Pfn{0}, 3}, {Pfn{10}, 5}, {Pfn{kHigh}, 50}};
  const auto half = [](u32, u64 first, u64 count) {
    return std::vector<LiveMemory::PageRun>{{first, (count + 1) / 2}};
  };
  const PagePlan plan = plan_pages(split_layout(), free, 0, half);
  for (const int times : coverage(plan.blocks[0], 100)) EXPECT_EQ(times, 1);
  for (const int times : coverage(plan.blocks[1], 4)) EXPECT_EQ(times, 1);
  EXPECT_EQ(plan.free_pages, 58U);
  EXPECT_EQ(plan.free_pages + plan.untouched_pages + plan.read_pages, 104U);
}

TEST(PagePlan, FreePagesCarryTheFillThatTheGuestExpects) {
  const PfnRange free[] = {{Pfn{10}, 5}};
  const PagePlan plan = plan_pages(split_layout(), free, 0xaa, all_resident);
  ASSERT_EQ(plan.blocks[0].known.size(), 1U);
  EXPECT_EQ(plan.blocks[0].known[0].kind, RunKind::kFree);
  EXPECT_EQ(plan.blocks[0].known[0].fill, 0xaa);
}

TEST(PagePlan, ABlockThatEndsWithinAPageHasThatPageSaved) {
  RamLayout layout = split_layout();
  layout.blocks[1].used_bytes = 3 * kPageSize + 1;
  const PagePlan plan = plan_pages(layout, {}, 0, all_resident);
  EXPECT_EQ(plan.blocks[1].read, (std::vector<BlockPages>{{0, 4}}));
}

TEST(PagePlan, ShortRunsOfOrdinaryPagesAreReadWithoutAsking) {
  bool asked_about_ram = false;
  const auto resident = [&](u32 block, u64, u64) {
    asked_about_ram |= block == 0;
    return std::vector<LiveMemory::PageRun>{};
  };
  EXPECT_EQ(plan_pages(split_layout(kPageSize), {}, 0, resident).read_pages, 104U);
  EXPECT_FALSE(asked_about_ram);
}

TEST(Chunks, HoldAtMostTheAskedPagesOfOneBlock) {
  const PfnRange free[] = {{Pfn{2}, 1}};
  const PagePlan plan = plan_pages(split_layout(), free, 0, all_resident);
  const std::vector<Chunk> chunks = cut_chunks(plan, 8);
  u64 pages = 0;
  for (const Chunk& chunk : chunks) {
    EXPECT_LE(chunk.pages, 8U);
    u64 in_runs = 0;
    for (const BlockPages& run : chunk.runs) in_runs += run.pages;
    EXPECT_EQ(in_runs, chunk.pages);
    pages += chunk.pages;
  }
  EXPECT_EQ(pages, plan.read_pages);
  EXPECT_EQ(chunks[0].runs, (std::vector<BlockPages>{{0, 2}, {3, 6}}));
  EXPECT_EQ(chunks.back().block, 1U);
}

}  // namespace
}  // namespace vmsieve
