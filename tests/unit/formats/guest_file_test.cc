// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/guest_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmsieve {
namespace {

using testing::SizeIs;

constexpr u64 kGap = u64{4} << 30;

PageRun run(u64 first, u64 pages, RunKind kind) {
  return {.first_page = first, .pages = pages, .kind = kind};
}

/// 100 pages of RAM, the last 40 of them above a hole, and video memory.
Manifest manifest() {
  Manifest manifest;
  manifest.blocks = {{.name = "vga", .used_bytes = 10 * kPageSize},
                     {.name = "ram", .used_bytes = 100 * kPageSize, .guest_ram = true}};
  manifest.mappings = {
      {.address = 0, .bytes = 60 * kPageSize, .block = 1, .block_offset = 0},
      {.address = 0xfd000000, .bytes = 10 * kPageSize, .block = 0, .block_offset = 0},
      {.address = kGap, .bytes = 40 * kPageSize, .block = 1, .block_offset = 60 * kPageSize}};
  return manifest;
}

MemoryIndex index() {
  MemoryIndex index;
  index.blocks = {{"vga", 10 * kPageSize, {run(0, 10, RunKind::kFill)}},
                  {"ram",
                   100 * kPageSize,
                   {run(0, 5, RunKind::kFree), run(5, 3, RunKind::kData), run(8, 2, RunKind::kFill),
                    run(10, 1, RunKind::kFree), run(11, 30, RunKind::kData), run(41, 50, RunKind::kFree),
                    run(91, 9, RunKind::kData)}}};
  return index;
}

struct Expected {
  u64 address;
  u64 pages;
  u64 file_pages;
  u64 offset;
  u64 first_page;
};

void expect_segments(const std::vector<FileSegment>& segments, const std::vector<Expected>& expected) {
  ASSERT_EQ(segments.size(), expected.size());
  for (std::size_t i = 0; i < segments.size(); ++i) {
    EXPECT_EQ(segments[i].address, expected[i].address) << i;
    EXPECT_EQ(segments[i].pages, expected[i].pages) << i;
    EXPECT_EQ(segments[i].file_pages, expected[i].file_pages) << i;
    EXPECT_EQ(segments[i].offset, expected[i].offset) << i;
    EXPECT_EQ(segments[i].block, 1U) << i;
    EXPECT_EQ(segments[i].first_page, expected[i].first_page) << i;
  }
}

TEST(GuestFile, ByAddressHasOneSegmentForEachMappingOfMainMemory) {
  expect_segments(segments_by_address(manifest()), {{0, 60, 60, 0, 0}, {kGap, 40, 40, kGap, 60}});
}

TEST(GuestFile, WithoutFreePagesEndsASegmentWithThem) {
  constexpr u64 kStart = 0x3000;
  expect_segments(segments_without_free(manifest(), index(), kStart, 100),
                  {{0, 5, 0, kStart, 0},
                   {5 * kPageSize, 6, 5, kStart, 5},
                   {11 * kPageSize, 49, 30, kStart + 5 * kPageSize, 11},
                   {kGap, 31, 0, kStart + 35 * kPageSize, 60},
                   {kGap + 31 * kPageSize, 9, 9, kStart + 35 * kPageSize, 91}});
}

TEST(GuestFile, ShortFreeRunsAreInTheFileWhereThereWouldBeTooMany) {
  // The one page is in; the five and the nineteen are not.
  expect_segments(segments_without_free(manifest(), index(), 0, 4),
                  {{0, 5, 0, 0, 0},
                   {5 * kPageSize, 55, 36, 0, 5},
                   {kGap, 31, 0, 36 * kPageSize, 60},
                   {kGap + 31 * kPageSize, 9, 9, 36 * kPageSize, 91}});
  EXPECT_THAT(segments_without_free(manifest(), index(), 0, 2), SizeIs(2));
  // As few as there are mappings, whatever was asked for.
  const auto fewest = segments_without_free(manifest(), index(), 0, 0);
  ASSERT_THAT(fewest, SizeIs(2));
  EXPECT_EQ(fewest[0].file_pages, 60U);
  EXPECT_EQ(fewest[1].offset, 60 * kPageSize);
}

}  // namespace
}  // namespace vmsieve
