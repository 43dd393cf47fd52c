// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/struct_page_scan.h"

#include <gtest/gtest.h>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

constexpr u64 kPages = 2048;

class StructPageScan : public ::testing::TestWithParam<u64> {
 protected:
  StructPageScan() : bytes(kPages * GetParam()) {
    layout.page_bytes = GetParam();
    layout.private_offset = 16;
    layout.type_offset = 24;
    layout.refcount_offset = 28;
    layout.buddy_type = 0xf000'0000;
    for (u64 i = 0; i < kPages; ++i) set(i, 1, ~u32{0}, 0);
  }

  void set(u64 page, u32 refcount, u32 type, u64 private_value) {
    std::byte* const at = &bytes[page * layout.page_bytes];
    std::memcpy(at + 16, &private_value, 8);
    std::memcpy(at + 24, &type, 4);
    std::memcpy(at + 28, &refcount, 4);
  }
  void free_block(u64 page, u64 order) {
    for (u64 i = 0; i < u64{1} << order; ++i) set(page + i, 0, ~u32{0}, 0);
    set(page, 0, layout.buddy_type, order);
  }
  SectionScan scan(u64 first_index = 0) {
    SectionScan found;
    scan_struct_pages(layout, {}, bytes, first_index, {}, found);
    return found;
  }
  // The one fault found, when nothing else was.
  static BlockFault only_fault(const SectionScan& found) {
    EXPECT_TRUE(found.blocks.empty());
    EXPECT_EQ(found.malformed.size(), 1u);
    return found.malformed.empty() ? BlockFault::kNotRam : found.malformed[0].fault();
  }

  PageLayout layout;
  std::vector<std::byte> bytes;
};

INSTANTIATE_TEST_SUITE_P(PageBytes, StructPageScan, ::testing::Values(32, 56, 64, 80));

TEST_P(StructPageScan, FindsNothingInPagesInUse) {
  EXPECT_TRUE(scan().blocks.empty());
  EXPECT_TRUE(scan().malformed.empty());
}

TEST_P(StructPageScan, FindsBlocksOfEveryOrder) {
  free_block(3, 0);
  free_block(4, 2);
  free_block(8, 3);
  free_block(1024, 10);
  const SectionScan found = scan();
  ASSERT_EQ(found.blocks.size(), 4u);
  EXPECT_EQ(found.blocks[1].index(), 4u);
  EXPECT_EQ(found.blocks[1].order(), 2u);
  EXPECT_EQ(found.blocks[3].index(), 1024u);
  EXPECT_EQ(found.blocks[3].order(), 10u);
  EXPECT_TRUE(found.malformed.empty());
}

TEST_P(StructPageScan, CountsFromFirstIndex) {
  free_block(0, 10);
  EXPECT_EQ(scan(4096).blocks.at(0).index(), 4096u);
}

TEST_P(StructPageScan, PagesWithoutFlagAreNotFree) {
  set(5, 0, ~u32{0}, 3);  // in a per-CPU list, say
  EXPECT_TRUE(scan().blocks.empty());
}

TEST_P(StructPageScan, OrderOutOfRangeIsMalformed) {
  for (const u64 order : {u64{11}, u64{64}, u64{1} << 32, ~u64{0}}) {
    set(0, 0, layout.buddy_type, order);
    EXPECT_EQ(only_fault(scan()), BlockFault::kOrder);
  }
}

TEST_P(StructPageScan, MisalignedBlockIsMalformed) {
  free_block(2, 2);
  EXPECT_EQ(only_fault(scan()), BlockFault::kAlignment);
}

TEST_P(StructPageScan, BlockBeyondTheEndIsMalformed) {
  layout.orders = 13;
  free_block(0, 1);
  set(0, 0, layout.buddy_type, 12);
  EXPECT_EQ(only_fault(scan()), BlockFault::kAlignment);
}

TEST_P(StructPageScan, HeadWithReferenceIsMalformed) {
  free_block(4, 2);
  set(4, 1, layout.buddy_type, 2);
  EXPECT_EQ(only_fault(scan()), BlockFault::kHeadInUse);
}

TEST_P(StructPageScan, PageInsideWithReferenceIsMalformed) {
  for (const u64 page : {u64{5}, u64{7}}) {
    free_block(4, 2);
    set(page, 1, ~u32{0}, 0);
    EXPECT_EQ(only_fault(scan()), BlockFault::kInterior);
  }
}

TEST_P(StructPageScan, PageInsideWithTypeIsMalformed) {
  free_block(4, 2);
  set(6, 0, 0, 0);  // mapped once
  EXPECT_EQ(only_fault(scan()), BlockFault::kInterior);
}

TEST_P(StructPageScan, BlockInsideBlockIsMalformedAndTheInnerOneStillFound) {
  free_block(0, 3);
  free_block(4, 2);
  const SectionScan found = scan();
  ASSERT_EQ(found.malformed.size(), 1u);
  EXPECT_EQ(found.malformed[0].fault(), BlockFault::kInterior);
  ASSERT_EQ(found.blocks.size(), 1u);
  EXPECT_EQ(found.blocks[0].index(), 4u);
}

TEST(BlockFault, EachSaysSomething) {
  for (u8 fault = 0; fault <= 5; ++fault) EXPECT_FALSE(to_string(static_cast<BlockFault>(fault)).empty());
}

}  // namespace
}  // namespace vmsieve
