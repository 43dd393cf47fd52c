// SPDX-License-Identifier: Apache-2.0
// The struct-page scan's second task: unused pages that carry no flag, and offline pages.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmsieve/base/endian.h"
#include "vmsieve/pages/struct_page_scan.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr u64 kPages = 2048;
constexpr u32 kNoType = ~u32{0};

class UnlistedScan : public ::testing::TestWithParam<u64> {
 protected:
  UnlistedScan() : bytes(kPages * GetParam()) {
    layout.page_bytes = GetParam();
    layout.lru_offset = 8;
    layout.private_offset = 24;
    layout.type_offset = 32;
    layout.refcount_offset = 36;
    layout.buddy_type = 0xf000'0000;
    layout.offline_type = 0xf100'0000;
    for (u64 i = 0; i < kPages; ++i) set(i, 1, kNoType, 0);
  }
  void set(u64 page, u32 refcount, u32 type, u64 private_value, u64 next = 0, u64 prev = 0) {
    std::byte* const at = &bytes[page * layout.page_bytes];
    std::memcpy(at + 8, &next, 8);
    std::memcpy(at + 16, &prev, 8);
    std::memcpy(at + 24, &private_value, 8);
    std::memcpy(at + 32, &type, 4);
    std::memcpy(at + 36, &refcount, 4);
  }
  SectionScan scan(ScanWants wants = {.unlisted = true, .offline = true}, u64 first_index = 0) {
    SectionScan found;
    scan_struct_pages(layout, {}, bytes, first_index, wants, found);
    return found;
  }
  std::vector<u64> unlisted() {
    std::vector<u64> pages;
    for (const UnlistedPage& page : scan().unlisted) pages.push_back(page.index);
    return pages;
  }

  PageLayout layout;
  std::vector<std::byte> bytes;
};

INSTANTIATE_TEST_SUITE_P(PageBytes, UnlistedScan, ::testing::Values(40, 56, 64, 80));

TEST_P(UnlistedScan, FindsUnusedPagesWithTheirLinks) {
  set(5, 0, kNoType, 0, 0xffff'ea00'0000'1008, 0xffff'ea00'0000'2008);
  const SectionScan found = scan();
  ASSERT_EQ(found.unlisted.size(), 1u);
  EXPECT_EQ(found.unlisted[0].index, 5u);
  EXPECT_EQ(found.unlisted[0].next, 0xffff'ea00'0000'1008u);
  EXPECT_EQ(found.unlisted[0].prev, 0xffff'ea00'0000'2008u);
  EXPECT_THAT(found.blocks, IsEmpty());
}

TEST_P(UnlistedScan, GivesThemInOrder) {
  for (const u64 page : {900, 3, 2047, 0}) set(page, 0, kNoType, 0);
  EXPECT_THAT(unlisted(), ElementsAre(0u, 3u, 900u, 2047u));
}

TEST_P(UnlistedScan, CountsFromFirstIndex) {
  set(5, 0, kNoType, 0);
  set(6, 0, 0xf100'0000, 0);
  const SectionScan found = scan({.unlisted = true, .offline = true}, 4096);
  EXPECT_EQ(found.unlisted.at(0).index, 4101u);
  EXPECT_THAT(found.offline, ElementsAre(4102u));
}

TEST_P(UnlistedScan, PagesInUseAreNotUnlisted) {
  set(1, 2, kNoType, 0);
  EXPECT_THAT(unlisted(), IsEmpty());
}

TEST_P(UnlistedScan, MappedPagesAreNotUnlisted) {
  set(1, 0, 0, 0);
  set(2, 0, 0xf500'0000, 0);
  EXPECT_THAT(unlisted(), IsEmpty());
}

TEST_P(UnlistedScan, TailPagesAreNotUnlisted) {
  set(1, 0, kNoType, 0, 0xffff'ea00'0000'0001);
  EXPECT_THAT(unlisted(), IsEmpty());
}

TEST_P(UnlistedScan, PagesOfFlaggedBlocksAreNotUnlisted) {
  for (u64 i = 8; i < 16; ++i) set(i, 0, kNoType, 0);
  set(8, 0, layout.buddy_type, 3);
  EXPECT_THAT(unlisted(), IsEmpty());
  EXPECT_EQ(scan().blocks.size(), 1u);
}

TEST_P(UnlistedScan, NothingIsKeptThatIsNotWanted) {
  set(1, 0, kNoType, 0);
  set(2, 0, 0xf100'0000, 0);
  EXPECT_THAT(scan({}).unlisted, IsEmpty());
  EXPECT_THAT(scan({}).offline, IsEmpty());
}

TEST_P(UnlistedScan, OfflinePagesAreFoundWhateverTheirCount) {
  set(2, 0, 0xf100'0000, 0);
  set(7, 1, 0xf100'0000, 0);
  EXPECT_THAT(scan().offline, ElementsAre(2u, 7u));
}

TEST_P(UnlistedScan, WithoutTheirTypeNoPageIsOffline) {
  layout.offline_type.reset();
  set(2, 0, 0xf100'0000, 0);
  set(3, 1, kNoType, 0);
  EXPECT_THAT(scan().offline, IsEmpty());
}

}  // namespace
}  // namespace vmsieve
