// SPDX-License-Identifier: Apache-2.0
// What find_free_pages() makes of free pages of several kinds: check G, zones in doubt, kinds that
// overlap, offline pages, the limit of unlisted pages.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_allocator.h"
#include "vmsieve/pages/free_pages.h"
#include "vmsieve/pages/section_scan.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using vmsieve::testing::FakeAllocator;
using vmsieve::testing::FakeAllocatorOptions;

constexpr u32 kOfflineType = 0xf100'0000;

class FreePageKinds : public ::testing::Test {
 protected:
  explicit FreePageKinds(FakeAllocatorOptions options = {}) : made(std::move(options)) {
    made.guest().free_block(0x800, 3);
    made.guest().free_block(0x2000, 10);
  }
  FreePages find(FreeKinds kinds = {}) {
    const AllocatorLayout layout = made.layout();
    FindOptions options;
    options.allocator = &layout;
    options.kinds = kinds;
    auto found = find_free_pages(made.memory(), made.guest().kernel(), options);
    EXPECT_TRUE(found.ok()) << found.error().message();
    if (!found.ok()) return {};
    EXPECT_EQ(found->count, found->buddy + found->per_cpu + found->hugetlb + found->offline);
    return *std::move(found);
  }
  void fill(u64 first, u64 count, u8 byte) {
    const std::vector<std::byte> page(kPageSize, std::byte{byte});
    for (u64 pfn = first; pfn < first + count; ++pfn) made.memory().write(Pfn{pfn}.address(), page);
  }

  FakeAllocator made;
};

// ---- check G: the kernel is past its start and at rest ----

TEST_F(FreePageKinds, RunningKernelAtRestPasses) {
  EXPECT_EQ(find().buddy, 0x408u);
  EXPECT_THAT(find().doubts, IsEmpty());
}

TEST_F(FreePageKinds, KernelThatStartsIsDoubted) {
  for (u32 state = 0; state < FakeAllocator::kRunning; ++state) {
    made.memory().write_le(FakeAllocator::kSystemState, state);
    const FreePages found = find();
    EXPECT_EQ(found.count, 0u);
    EXPECT_THAT(found.doubts, ElementsAre("the guest's kernel is still starting"));
  }
}

TEST_F(FreePageKinds, KernelThatShutsDownOrSuspendsIsPastItsStart) {
  made.memory().write_le(FakeAllocator::kSystemState, FakeAllocator::kRunning + 3);
  EXPECT_EQ(find().buddy, 0x408u);
}

TEST_F(FreePageKinds, StateThatCannotBeReadIsDoubted) {
  made.move_symbol("system_state", GuestVirtual{0xffff'ffff'f000'0000});
  EXPECT_EQ(find().count, 0u);
  EXPECT_THAT(find().doubts, ElementsAre(HasSubstr("still starting")));
}

TEST_F(FreePageKinds, HeldLockOfAnyZoneIsDoubtAboutEverything) {
  for (const u32 zone : {0u, 1u}) {
    made.memory().write_le(made.zone_lock(zone), u32{1});
    const FreePages found = find();
    EXPECT_EQ(found.count, 0u);
    EXPECT_THAT(found.doubts, ElementsAre(HasSubstr("the lock of the zone at")));
    made.memory().write_le(made.zone_lock(zone), u32{0});
  }
}

TEST_F(FreePageKinds, WhatStandsBehindALockOfFourBytesIsNotTheLock) {
  made.memory().write_le(made.zone_lock(1) + 4, ~u32{0});
  EXPECT_EQ(find().buddy, 0x408u);
}

TEST_F(FreePageKinds, OwnerOfARealtimeLockIsAtWork) {
  FakeAllocator other({.realtime = true});
  other.guest().free_block(0x2000, 10);
  const AllocatorLayout layout = other.layout();
  FindOptions options;
  options.allocator = &layout;
  other.memory().write_le(other.zone_lock(1), u64{0xffff'8880'0123'4000} << 32);
  EXPECT_EQ(find_free_pages(other.memory(), other.guest().kernel(), options)->count, 0u);
  other.memory().write_le(other.zone_lock(1), u64{0});
  EXPECT_EQ(find_free_pages(other.memory(), other.guest().kernel(), options)->count, 0x400u);
}

TEST_F(FreePageKinds, KernelWithoutLocksPasses) {
  FakeAllocator other({.zone_lock_bytes = 0});
  other.guest().free_block(0x2000, 10);
  const AllocatorLayout layout = other.layout();
  FindOptions options;
  options.allocator = &layout;
  EXPECT_EQ(find_free_pages(other.memory(), other.guest().kernel(), options)->count, 0x400u);
}

// ---- zones in doubt ----

TEST_F(FreePageKinds, ListsOfAZoneInDoubtAreSaved) {
  made.list_block(0, 0, 0, 0x200, 0);
  made.list_block(0, 1, 0, 0x2801, 0);
  made.pool_page(0, 0, 0x2a00, 9);
  made.guest().flag_block(0x2900, 0);  // not counted
  const FreePages found = find();
  EXPECT_THAT(found.runs, ElementsAre(PfnRange{Pfn{0x200}, 1}, PfnRange{Pfn{0x800}, 8}));
  EXPECT_EQ(found.per_cpu, 1u);
  EXPECT_EQ(found.hugetlb, 0u);
}

TEST_F(FreePageKinds, ListedRunThatReachesIntoAZoneInDoubtIsCut) {
  made.list_block(0, 0, 0, 0xfff, 0);
  made.list_block(0, 1, 0, 0x1000, 0);
  EXPECT_EQ(find().per_cpu, 2u);
  made.guest().flag_block(0x2900, 0);
  EXPECT_THAT(find().runs, ElementsAre(PfnRange{Pfn{0x800}, 8}, PfnRange{Pfn{0xfff}, 1}));
}

TEST_F(FreePageKinds, BlockInNoZoneIsDoubtAboutListsToo) {
  made.list_block(0, 1, 0, 0x2801, 0);
  made.guest().set_page(0, 0, made.guest().options().buddy_type, 0);
  const FreePages found = find();
  EXPECT_EQ(found.count, 0u);
  EXPECT_EQ(found.doubts.size(), 1u);
}

TEST_F(FreePageKinds, ListedPageInNoZoneIsSaved) {
  made.list_block(0, 0, 0, 0x0, 0);  // zones begin at 1
  EXPECT_EQ(find().per_cpu, 0u);
}

// ---- kinds that overlap ----

TEST_F(FreePageKinds, PageThatIsFlaggedAndInAPoolIsOnNoList) {
  made.list_block(0, 1, 0, 0x2801, 0);
  made.pool_page(0, 0, 0x2a00, 9);
  made.guest().free_block(0x2a01, 0);
  const FreePages found = find();
  EXPECT_EQ(found.count, found.buddy);
  EXPECT_EQ(found.buddy, 0x409u);
  EXPECT_THAT(found.list_doubts, ElementsAre("pages are on several lists of free pages"));
}

TEST_F(FreePageKinds, PageOfACpuInAPoolIsOnNoList) {
  made.pool_page(0, 0, 0x2a00, 9);
  made.list_block(0, 1, 0, 0x2a05, 0);
  const FreePages found = find();
  EXPECT_EQ(found.per_cpu + found.hugetlb, 0u);
  EXPECT_THAT(found.list_doubts, ElementsAre("pages are on several lists of free pages"));
}

// ---- offline pages ----

class OfflinePages : public FreePageKinds {
 protected:
  OfflinePages() {
    made.guest().set_key("NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)",
                         std::to_string(static_cast<std::int32_t>(kOfflineType)));
    for (const u64 pfn : {0x9e, 0x9f, 0xa0, 0xa1, 0x2a00}) made.guest().set_page(pfn, 1, kOfflineType, 0);
  }
};

TEST_F(OfflinePages, AreSavedUnlessWanted) { EXPECT_EQ(find().offline, 0u); }

TEST_F(OfflinePages, AreFoundWhenWanted) {
  const FreePages found = find({.offline = true});
  EXPECT_EQ(found.offline, 3u);  // two are not RAM
  EXPECT_THAT(found.runs, ElementsAre(PfnRange{Pfn{0x9e}, 2}, PfnRange{Pfn{0x800}, 8},
                                      PfnRange{Pfn{0x2000}, 0x400}, PfnRange{Pfn{0x2a00}, 1}));
}

TEST_F(OfflinePages, AreNotTakenForOtherTypes) {
  made.guest().set_page(0x2a01, 1, 0xf200'0000, 0);
  made.guest().set_page(0x2a02, 1, ~u32{0}, 0);
  EXPECT_EQ(find({.offline = true}).offline, 3u);
}

TEST_F(OfflinePages, AreNotFoundWithoutTheirType) {
  made.guest().set_key("NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)", "");
  EXPECT_EQ(find({.offline = true}).offline, 0u);
}

// ---- what pages read as, when they are of several kinds ----

TEST_F(FreePageKinds, PoisonIsNotOutvotedByHugePages) {
  fill(0x800, 8, 0xaa);
  fill(0x2000, 0x400, 0xaa);
  made.pool_page(0, 0, 0x2400, 9);
  made.pool_page(0, 0, 0x2600, 9);
  made.pool_page(1, 0, 0x2800, 10);
  for (u64 pfn = 0x2400; pfn < 0x2c00; ++pfn) made.memory().write_le(Pfn{pfn}.address(), pfn);
  const FreePages found = find();
  EXPECT_EQ(found.hugetlb, 0x800u);
  EXPECT_EQ(found.fill, 0xaa);
}

TEST_F(FreePageKinds, HugePagesOfOneByteAreNoFill) {
  // With init_on_free every other free page must read as zeros.
  made.pool_page(1, 0, 0x2800, 10);
  made.pool_page(1, 0, 0x2c00, 10);
  fill(0x2800, 0x800, 0x55);
  EXPECT_EQ(find().hugetlb, 0x800u);
  EXPECT_EQ(find().fill, 0);
}

// ---- the limit of unlisted pages ----

class UnlistedPages : public ::testing::Test {
 protected:
  // So many sections that all show the same 4096 unused pages.
  static u64 unlisted(u64 sections) {
    FakeAllocator made;
    for (u64 pfn = 0x2000; pfn < 0x3000; ++pfn) made.unuse(pfn, 0);
    const auto kernel = made.guest().kernel();
    const auto layout = PageLayout::from(kernel.vmcoreinfo());
    VMSIEVE_CHECK(layout.ok());
    std::vector<MemorySection> all;
    for (u64 i = 0; i < sections; ++i) all.push_back({Pfn{i * 0x1000}, made.guest().vmemmap() + 0x2000 * 64});
    const auto scans =
        scan_sections(made.memory(), kernel.page_tables(), *layout, all, {.unlisted = true}, 1);
    VMSIEVE_CHECK(scans.ok());
    u64 pages = 0;
    for (const ScannedSection& scan : *scans) pages += scan.found.unlisted.size();
    return pages;
  }
};

TEST_F(UnlistedPages, AreAllKeptUpToTheLimit) { EXPECT_EQ(unlisted(256), kMaxUnlistedPages); }

TEST_F(UnlistedPages, OfSectionsBeyondTheLimitNoneAreKept) { EXPECT_EQ(unlisted(300), kMaxUnlistedPages); }

TEST_F(UnlistedPages, OfASectionLargerThanTheLimitNoneAreKept) {
  // A section of 16 GiB, whose map shows the same 2 MiB of struct pages over and over.
  FakeAllocator made({.guest = {.section_shift = 34}});
  for (u64 pfn = 0; pfn < 0x3000; ++pfn) made.unuse(pfn, 0);
  made.guest().tables().map_range(made.guest().vmemmap(), made.guest().kStructPages, 2 * kMiB, 21);
  for (u64 i = 0; i < 128; ++i)
    made.guest().tables().map(made.guest().vmemmap() + i * 2 * kMiB, made.guest().kStructPages, 21);
  const auto kernel = made.guest().kernel();
  const auto layout = PageLayout::from(kernel.vmcoreinfo());
  ASSERT_TRUE(layout.ok());
  const std::vector<MemorySection> sections{{Pfn{0}, made.guest().vmemmap()}};
  const auto scans =
      scan_sections(made.memory(), kernel.page_tables(), *layout, sections, {.unlisted = true}, 1);
  ASSERT_TRUE(scans.ok());
  EXPECT_TRUE(scans->at(0).unreadable.empty());
  EXPECT_THAT(scans->at(0).found.unlisted, IsEmpty());
}

}  // namespace
}  // namespace vmsieve
