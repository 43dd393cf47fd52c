// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/memory_units.h"

#include <algorithm>
#include <random>

#include <gtest/gtest.h>

namespace vmsieve {
namespace {

constexpr u64 kUnit = MemoryUnits::kUnitBytes;
constexpr u64 kUnitPages = kUnit / kPageSize;
constexpr u64 kBase = u64{0x7f00} << 32;  // a multiple of 1 GiB

RamBlock block_at(u64 host, u64 bytes, u64 host_page_bytes = kPageSize) {
  return {.name = "ram",
          .used_bytes = bytes,
          .max_bytes = bytes,
          .host_page_bytes = host_page_bytes,
          .host = HostVirtual{host}};
}

MemoryUnits units_of(std::vector<RamBlock> blocks) { return MemoryUnits({std::move(blocks), {}}); }

/// Every unit's place and host addresses agree, and at() finds the unit from both of its ends.
void expect_consistent(const MemoryUnits& units) {
  for (std::size_t unit = 0; unit < units.count(); ++unit) {
    const ByteRange host = units.host(unit);
    const MemoryUnits::Place place = units.place(unit);
    const u64 start = units.block(place.block).start;
    EXPECT_LT(host.start, host.end) << "unit " << unit;
    EXPECT_EQ(host.start, start + place.pages.first_page * kPageSize) << "unit " << unit;
    EXPECT_EQ(host.end - host.start, place.pages.pages * kPageSize) << "unit " << unit;
    EXPECT_EQ(units.at(host.start), unit);
    EXPECT_EQ(units.at(host.end - 1), unit);
  }
}

TEST(MemoryUnits, AlignedBlockIsCutEveryTwoMebibytes) {
  const MemoryUnits units = units_of({block_at(kBase, 3 * kUnit)});
  ASSERT_EQ(units.count(), 3U);
  EXPECT_EQ(units.host(1), (ByteRange{kBase + kUnit, kBase + 2 * kUnit}));
  EXPECT_EQ(units.place(2).pages, (BlockPages{2 * kUnitPages, kUnitPages}));
  expect_consistent(units);
}

TEST(MemoryUnits, BlockThatIsNotAlignedHasShorterUnitsAtItsEnds) {
  const u64 host = kBase + kUnit - 3 * kPageSize;
  const MemoryUnits units = units_of({block_at(host, kUnit + 8 * kPageSize)});
  ASSERT_EQ(units.count(), 3U);
  EXPECT_EQ(units.place(0).pages, (BlockPages{0, 3}));
  EXPECT_EQ(units.place(1).pages, (BlockPages{3, kUnitPages}));
  EXPECT_EQ(units.place(2).pages, (BlockPages{3 + kUnitPages, 5}));
  expect_consistent(units);
}

TEST(MemoryUnits, BlockInsideOneUnitIsOneUnit) {
  const MemoryUnits units = units_of({block_at(kBase + 5 * kPageSize, 7 * kPageSize)});
  ASSERT_EQ(units.count(), 1U);
  EXPECT_EQ(units.host(0), (ByteRange{kBase + 5 * kPageSize, kBase + 12 * kPageSize}));
  EXPECT_EQ(units.place(0).pages, (BlockPages{0, 7}));
  expect_consistent(units);
}

TEST(MemoryUnits, NeighboursShareNoUnit) {
  const u64 border = kBase + 100 * kPageSize;
  const MemoryUnits units =
      units_of({block_at(kBase + 50 * kPageSize, 50 * kPageSize), block_at(border, kUnit - 100 * kPageSize)});
  ASSERT_EQ(units.count(), 2U);
  EXPECT_EQ(units.at(border - 1), 0U);
  EXPECT_EQ(units.at(border), 1U);
  expect_consistent(units);
}

TEST(MemoryUnits, UsedBytesThatAreNotWholePagesAreRoundedUp) {
  const MemoryUnits units = units_of({block_at(kBase, kPageSize + 1)});
  EXPECT_EQ(units.block(0), (ByteRange{kBase, kBase + 2 * kPageSize}));
  EXPECT_EQ(units.place(0).pages.pages, 2U);
}

TEST(MemoryUnits, BlocksNeedNotLieInTheOrderOfTheirAddresses) {
  const MemoryUnits units = units_of({block_at(kBase + 8 * kUnit, 2 * kUnit), block_at(kBase, kUnit),
                                      block_at(kBase + 4 * kUnit + kPageSize, kUnit)});
  ASSERT_EQ(units.count(), 5U);
  EXPECT_EQ(units.first_unit(0), 0U);
  EXPECT_EQ(units.first_unit(1), 2U);
  EXPECT_EQ(units.first_unit(2), 3U);
  EXPECT_EQ(units.at(kBase + 9 * kUnit), 1U);
  EXPECT_EQ(units.at(kBase), 2U);
  EXPECT_EQ(units.at(kBase + 5 * kUnit), 4U);
  EXPECT_EQ(units.place(2).block, 1U);
  EXPECT_EQ(units.place(4).block, 2U);
  expect_consistent(units);
}

TEST(MemoryUnits, EmptyBlocksHaveNone) {
  const MemoryUnits units =
      units_of({block_at(0, 0), block_at(kBase, kUnit), block_at(kBase, 0), block_at(kBase + 0 * kUnit, 0),
                block_at(kBase + kUnit, kUnit), block_at(0, 0)});
  ASSERT_EQ(units.count(), 2U);
  EXPECT_EQ(units.blocks(), 6U);
  EXPECT_EQ(units.place(0).block, 1U);
  EXPECT_EQ(units.place(1).block, 4U);
  EXPECT_EQ(units.at(kBase), 0U);
  EXPECT_EQ(units.at(0), std::nullopt);
  expect_consistent(units);
}

TEST(MemoryUnits, NoBlocksNoUnits) {
  const MemoryUnits units = units_of({});
  EXPECT_EQ(units.count(), 0U);
  EXPECT_EQ(units.at(kBase), std::nullopt);
}

TEST(MemoryUnits, HugePageOfAGibibyteIsOneUnit) {
  const MemoryUnits units =
      units_of({block_at(kBase, 2 * kGiB, kGiB), block_at(kBase + 4 * kGiB, 2 * kUnit)});
  ASSERT_EQ(units.count(), 4U);
  EXPECT_EQ(units.unit_bytes(0), kGiB);
  EXPECT_EQ(units.unit_bytes(1), kUnit);
  EXPECT_EQ(units.host(1), (ByteRange{kBase + kGiB, kBase + 2 * kGiB}));
  EXPECT_EQ(units.place(1).pages, (BlockPages{kGiB / kPageSize, kGiB / kPageSize}));
  expect_consistent(units);
}

TEST(MemoryUnits, BlockOfHugePagesEndsWithAWholeOne) {
  const MemoryUnits units = units_of({block_at(kBase, kGiB + kPageSize, kGiB)});
  EXPECT_EQ(units.block(0), (ByteRange{kBase, kBase + 2 * kGiB}));
  EXPECT_EQ(units.count(), 2U);
  expect_consistent(units);
}

TEST(MemoryUnits, AddressesOutsideOfAllBlocksAreInNone) {
  const MemoryUnits units =
      units_of({block_at(kBase + kPageSize, kUnit), block_at(kBase + 4 * kUnit, kUnit + kPageSize)});
  EXPECT_EQ(units.at(0), std::nullopt);
  EXPECT_EQ(units.at(kBase + kPageSize - 1), std::nullopt);
  EXPECT_EQ(units.at(kBase + kPageSize), 0U);
  EXPECT_EQ(units.at(kBase + kUnit - 1), 0U);
  EXPECT_EQ(units.at(kBase + kUnit), 1U);
  EXPECT_EQ(units.at(kBase + kUnit + kPageSize - 1), 1U);
  EXPECT_EQ(units.at(kBase + kUnit + kPageSize), std::nullopt);
  EXPECT_EQ(units.at(kBase + 4 * kUnit - 1), std::nullopt);
  EXPECT_EQ(units.at(kBase + 5 * kUnit + kPageSize - 1), 3U);
  EXPECT_EQ(units.at(kBase + 5 * kUnit + kPageSize), std::nullopt);
  EXPECT_EQ(units.at(~u64{0}), std::nullopt);
}

// ---- cut_unit_chunks ----

PagePlan plan_of(std::vector<std::vector<BlockPages>> read) {
  PagePlan plan;
  for (std::vector<BlockPages>& runs : read) plan.blocks.push_back({.known = {}, .read = std::move(runs)});
  return plan;
}

/// All that must be true of the chunks of a plan.
void expect_valid(const UnitChunks& cut, const PagePlan& plan, const MemoryUnits& units, u64 max_pages) {
  std::vector<std::vector<BlockPages>> pages(plan.blocks.size());  // of the chunks, joined where they adjoin
  for (const Chunk& chunk : cut.chunks) {
    u64 count = 0;
    for (const BlockPages& run : chunk.runs) {
      EXPECT_GT(run.pages, 0U);
      count += run.pages;
      std::vector<BlockPages>& joined = pages.at(chunk.block);
      if (!joined.empty() && joined.back().first_page + joined.back().pages == run.first_page) {
        joined.back().pages += run.pages;
      } else {
        joined.push_back(run);
      }
    }
    EXPECT_EQ(count, chunk.pages);
    EXPECT_GT(count, 0U);
    EXPECT_LE(count, max_pages);
  }
  for (std::size_t block = 0; block < pages.size(); ++block)
    EXPECT_EQ(pages[block], plan.blocks[block].read) << "block " << block;

  ASSERT_EQ(cut.first_chunk.size(), units.count() + 1);
  EXPECT_EQ(cut.first_chunk.front(), 0U);
  EXPECT_EQ(cut.first_chunk.back(), cut.chunks.size());
  for (std::size_t unit = 0; unit < units.count(); ++unit) {
    ASSERT_LE(cut.first_chunk[unit], cut.first_chunk[unit + 1]) << "unit " << unit;
    const MemoryUnits::Place place = units.place(unit);
    for (std::size_t i = cut.first_chunk[unit]; i < cut.first_chunk[unit + 1]; ++i) {
      EXPECT_EQ(cut.chunks[i].block, place.block);
      for (const BlockPages& run : cut.chunks[i].runs) {
        EXPECT_GE(run.first_page, place.pages.first_page) << "unit " << unit;
        EXPECT_LE(run.first_page + run.pages, place.pages.first_page + place.pages.pages) << "unit " << unit;
      }
    }
  }
}

TEST(UnitChunks, RunOverABorderIsCutThere) {
  const MemoryUnits units = units_of({block_at(kBase, 2 * kUnit)});
  const PagePlan plan = plan_of({{{kUnitPages - 3, 8}}});
  const UnitChunks cut = cut_unit_chunks(plan, units, 64);
  ASSERT_EQ(cut.chunks.size(), 2U);
  EXPECT_EQ(cut.chunks[0].runs, (std::vector<BlockPages>{{kUnitPages - 3, 3}}));
  EXPECT_EQ(cut.chunks[1].runs, (std::vector<BlockPages>{{kUnitPages, 5}}));
  expect_valid(cut, plan, units, 64);
}

TEST(UnitChunks, ShortRunsOfOneUnitShareAChunk) {
  const MemoryUnits units = units_of({block_at(kBase, 2 * kUnit)});
  const PagePlan plan = plan_of({{{0, 1}, {10, 2}, {100, 3}}});
  const UnitChunks cut = cut_unit_chunks(plan, units, 64);
  ASSERT_EQ(cut.chunks.size(), 1U);
  EXPECT_EQ(cut.chunks[0].pages, 6U);
  expect_valid(cut, plan, units, 64);
}

TEST(UnitChunks, ChunkThatIsFullAtTheBorderOfAUnitLeavesNoEmptyOne) {
  const MemoryUnits units = units_of({block_at(kBase, 3 * kUnit)});
  const PagePlan plan = plan_of({{{0, 3 * kUnitPages}}});
  const UnitChunks cut = cut_unit_chunks(plan, units, 64);
  EXPECT_EQ(cut.chunks.size(), 3 * kUnitPages / 64);
  expect_valid(cut, plan, units, 64);
}

TEST(UnitChunks, UnitsWithoutPagesHaveNoChunks) {
  const MemoryUnits units = units_of({block_at(kBase, 6 * kUnit)});
  const PagePlan plan = plan_of({{{2 * kUnitPages, 1}, {4 * kUnitPages + 7, 1}}});
  const UnitChunks cut = cut_unit_chunks(plan, units, 64);
  EXPECT_EQ(cut.first_chunk, (std::vector<std::size_t>{0, 0, 0, 1, 1, 2, 2}));
  expect_valid(cut, plan, units, 64);
}

TEST(UnitChunks, BlocksWithoutUnitsAndBlocksWithoutPages) {
  const MemoryUnits units = units_of({block_at(0, 0), block_at(kBase + 8 * kUnit, kUnit), block_at(0, 0),
                                      block_at(kBase, 2 * kUnit), block_at(kBase + 4 * kUnit, kUnit)});
  const PagePlan plan = plan_of({{}, {}, {}, {{kUnitPages, 2}}, {}});
  const UnitChunks cut = cut_unit_chunks(plan, units, 64);
  EXPECT_EQ(cut.first_chunk, (std::vector<std::size_t>{0, 0, 0, 1, 1}));
  expect_valid(cut, plan, units, 64);
}

TEST(UnitChunks, EmptyPlanHasNone) {
  const MemoryUnits units = units_of({block_at(kBase, 2 * kUnit)});
  const UnitChunks cut = cut_unit_chunks(plan_of({{}}), units, 64);
  EXPECT_TRUE(cut.chunks.empty());
  EXPECT_EQ(cut.first_chunk, (std::vector<std::size_t>{0, 0, 0}));
}

TEST(UnitChunks, NoUnitsAtAll) {
  const UnitChunks cut = cut_unit_chunks(plan_of({}), units_of({}), 64);
  EXPECT_TRUE(cut.chunks.empty());
  EXPECT_EQ(cut.first_chunk, (std::vector<std::size_t>{0}));
}

TEST(UnitChunks, HugePageOfAGibibyteIsManyChunks) {
  const MemoryUnits units = units_of({block_at(kBase, 2 * kGiB, kGiB)});
  const PagePlan plan = plan_of({{{kGiB / kPageSize - 100, 200}}});
  const UnitChunks cut = cut_unit_chunks(plan, units, 64);
  EXPECT_EQ(cut.chunks.size(), 4U);
  EXPECT_EQ(cut.first_chunk, (std::vector<std::size_t>{0, 2, 4}));
  expect_valid(cut, plan, units, 64);
}

TEST(UnitChunks, RandomPlansOfRandomBlocks) {
  const auto seed = static_cast<unsigned>(std::random_device{}());
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  const auto below = [&](u64 n) { return std::uniform_int_distribution<u64>(0, n - 1)(random); };
  for (int round = 0; round < 200; ++round) {
    std::vector<RamBlock> blocks;
    std::vector<std::vector<BlockPages>> read;
    u64 host = kBase;
    for (u64 i = below(6); i > 0; --i) {
      host += below(2 * kUnitPages) * kPageSize;
      const u64 pages = below(4) == 0 ? 0 : below(4 * kUnitPages);
      blocks.push_back(block_at(host, pages * kPageSize));
      host += pages * kPageSize;
    }
    std::shuffle(blocks.begin(), blocks.end(), random);
    for (const RamBlock& block : blocks) {
      const u64 pages = block.used_bytes / kPageSize;
      std::vector<BlockPages> runs;
      for (u64 at = below(700); at < pages;) {
        const u64 count = std::min(1 + below(below(2) == 0 ? 4 : 1500), pages - at);
        runs.push_back({at, count});
        at += count + 1 + below(700);
      }
      read.push_back(std::move(runs));
    }
    const MemoryUnits units = units_of(blocks);
    expect_consistent(units);
    const PagePlan plan = plan_of(std::move(read));
    const u64 max_pages = 1 + below(100);
    expect_valid(cut_unit_chunks(plan, units, max_pages), plan, units, max_pages);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace vmsieve
