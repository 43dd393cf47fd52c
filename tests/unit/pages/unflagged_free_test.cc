// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/unflagged_free.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_allocator.h"
#include "vmsieve/pages/free_pages.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using vmsieve::testing::FakeAllocator;
using vmsieve::testing::FakeAllocatorOptions;

// Lists as order_to_pindex() numbers them, with three migrate types.
constexpr u32 kOrder0 = 0, kOrder3 = 10, kHuge = 13;

class ListedPagesTest : public ::testing::Test {
 protected:
  explicit ListedPagesTest(FakeAllocatorOptions options = {}) : made(std::move(options)) {}

  FreePages find() {
    const AllocatorLayout layout = made.layout();
    FindOptions options;
    options.allocator = &layout;
    auto found = find_free_pages(made.memory(), made.guest().kernel(), options);
    EXPECT_TRUE(found.ok()) << found.error().message();
    if (!found.ok()) return {};
    EXPECT_THAT(found->doubts, IsEmpty());
    EXPECT_EQ(found->count, found->buddy + found->per_cpu + found->hugetlb + found->offline);
    return *std::move(found);
  }
  // The one doubt about lists, of which nothing but `rest` pages of others is left out.
  std::string doubt(u64 rest = 0) {
    const FreePages found = find();
    EXPECT_EQ(found.count, rest);
    EXPECT_THAT(found.list_doubts, SizeIs(1));
    return found.list_doubts.empty() ? "" : found.list_doubts[0];
  }

  FakeAllocator made;
};

// ---- per-CPU lists that hold ----

TEST_F(ListedPagesTest, EmptyListsHoldNothing) {
  const FreePages found = find();
  EXPECT_EQ(found.count, 0u);
  EXPECT_THAT(found.list_doubts, IsEmpty());
}

TEST_F(ListedPagesTest, FindsSinglePages) {
  made.list_block(0, 1, kOrder0, 0x2003, 0);
  made.list_block(0, 1, kOrder0 + 1, 0x2801, 0);
  const FreePages found = find();
  EXPECT_THAT(found.runs, ElementsAre(PfnRange{Pfn{0x2003}, 1}, PfnRange{Pfn{0x2801}, 1}));
  EXPECT_EQ(found.per_cpu, 2u);
}

TEST_F(ListedPagesTest, FindsBlocksOfEveryOrder) {
  made.list_block(0, 1, kOrder0, 0x2003, 0);
  made.list_block(0, 1, 4, 0x2012, 1);
  made.list_block(0, 1, 7, 0x2024, 2);
  made.list_block(0, 1, kOrder3, 0x2038, 3);
  made.list_block(0, 1, kHuge, 0x2600, 9);
  const FreePages found = find();
  EXPECT_THAT(found.runs,
              ElementsAre(PfnRange{Pfn{0x2003}, 1}, PfnRange{Pfn{0x2012}, 2}, PfnRange{Pfn{0x2024}, 4},
                          PfnRange{Pfn{0x2038}, 8}, PfnRange{Pfn{0x2600}, 512}));
  EXPECT_EQ(found.per_cpu, 1u + 2 + 4 + 8 + 512);
  EXPECT_THAT(found.list_doubts, IsEmpty());
}

TEST_F(ListedPagesTest, FindsPagesOfEveryCpuAndZone) {
  made.list_block(0, 0, kOrder0, 0x200, 0);
  made.list_block(1, 0, kOrder0, 0x300, 0);
  made.list_block(0, 1, kOrder0, 0x2000, 0);
  made.list_block(1, 1, kOrder0, 0x2100, 0);
  EXPECT_EQ(find().per_cpu, 4u);
}

TEST_F(ListedPagesTest, FollowsLongListsInAnyOrder) {
  for (u64 i = 0; i < 300; ++i) made.list_block(0, 1, kOrder0, 0x2000 + (i * 7) % 300, 0);
  EXPECT_THAT(find().runs, ElementsAre(PfnRange{Pfn{0x2000}, 300}));
}

TEST_F(ListedPagesTest, JoinsWithFlaggedBlocks) {
  made.guest().free_block(0x2000, 3);
  made.list_block(0, 1, kOrder0, 0x2008, 0);
  const FreePages found = find();
  EXPECT_THAT(found.runs, ElementsAre(PfnRange{Pfn{0x2000}, 9}));
  EXPECT_EQ(found.buddy, 8u);
  EXPECT_EQ(found.per_cpu, 1u);
}

TEST_F(ListedPagesTest, PagesOnNoListAreSaved) {
  made.unuse(0x2000, 4);
  EXPECT_EQ(find().count, 0u);
}

TEST_F(ListedPagesTest, WithoutALayoutNoListIsRead) {
  made.list_block(0, 1, kOrder0, 0x2000, 0);
  const auto found = find_free_pages(made.memory(), made.guest().kernel(), {});
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->count, 0u);
}

class ListedPagesKernels : public ListedPagesTest,
                           public ::testing::WithParamInterface<FakeAllocatorOptions> {
 protected:
  ListedPagesKernels() : ListedPagesTest(GetParam()) {}
};

INSTANTIATE_TEST_SUITE_P(
    Kernels, ListedPagesKernels,
    ::testing::Values(FakeAllocatorOptions{.guest = {.levels = 5}},
                      FakeAllocatorOptions{.guest = {.small_vmemmap_pages = true}},
                      FakeAllocatorOptions{
                          .lists = 3, .pageset = true, .pcp_lock_bytes = 0, .trylock = false},
                      FakeAllocatorOptions{.lists = 15, .pcp_lock_bytes = 0, .trylock = false},
                      FakeAllocatorOptions{.lists = 13}, FakeAllocatorOptions{.realtime = true}));

TEST_P(ListedPagesKernels, FindsTheSame) {
  made.list_block(0, 0, kOrder0, 0x200, 0);
  made.list_block(1, 1, kOrder0 + 2, 0x2100, 0);
  const FreePages found = find();
  EXPECT_EQ(found.per_cpu, 2u);
  EXPECT_THAT(found.list_doubts, IsEmpty());
}

// ---- per-CPU lists that do not hold: nothing of that CPU and zone is left out, all of others is ----

class BrokenLists : public ListedPagesTest {
 protected:
  BrokenLists() {
    made.list_block(0, 1, kOrder0, 0x2001, 0);
    made.list_block(0, 1, kOrder0, 0x2002, 0);
    made.list_block(0, 1, kOrder0, 0x2003, 0);
    made.list_block(0, 1, kOrder3, 0x2010, 3);
    made.list_block(1, 1, kOrder0, 0x2101, 0);
    made.list_block(0, 0, kOrder0, 0x201, 0);
  }
  // Only what the other CPU and the other zone hold is left out.
  std::string doubt_of_cpu() { return doubt(2); }
};

TEST_F(BrokenLists, UnchangedTheyHold) {
  EXPECT_EQ(find().per_cpu, 13u);
  EXPECT_THAT(find().list_doubts, IsEmpty());
}

TEST_F(BrokenLists, LockIsHeld) {
  made.memory().write_le(made.pcp(0, 1), u32{1});
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("a CPU is at work at its lists"));
}

TEST_F(BrokenLists, CounterIsOneTooLow) {
  made.count_pages(0, 1, -1);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("a CPU counts 10 pages in its lists, 11 are there"));
}

TEST_F(BrokenLists, CounterIsOneTooHigh) {
  made.count_pages(0, 1, 1);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("a CPU counts 12 pages in its lists, 11 are there"));
}

TEST_F(BrokenLists, CounterIsFarTooLow) {
  made.count_pages(0, 1, -10);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("longer than their counter says"));
}

TEST_F(BrokenLists, CounterIsNegative) {
  made.count_pages(0, 1, -12);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("a CPU counts 4294967295 pages"));
}

TEST_F(BrokenLists, BackwardLinkIsWrong) {
  made.set_prev(made.page_link(0x2002), made.page_link(0x2003).address.value);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("the list is broken at"));
}

TEST_F(BrokenLists, BackwardLinkOfHeadIsWrong) {
  made.set_prev(made.pcp_list(0, 1, kOrder0), made.page_link(0x2002).address.value);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("the list does not end where it should"));
}

TEST_F(BrokenLists, HalfOfAPageIsTakenOff) {
  // list_del() between its two stores.
  made.set_prev(made.page_link(0x2003), made.page_link(0x2001).address.value);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("the list is broken at"));
}

TEST_F(BrokenLists, PageIsTakenOffButNotUncounted) {
  made.set_next(made.page_link(0x2001), made.page_link(0x2003).address.value);
  made.set_prev(made.page_link(0x2003), made.page_link(0x2001).address.value);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("a CPU counts 11 pages in its lists, 10 are there"));
}

TEST_F(BrokenLists, PageIsInUse) {
  made.guest().set_page(0x2002, 1, ~u32{0}, 0);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("which is no free page"));
}

TEST_F(BrokenLists, PageIsMapped) {
  made.guest().set_page(0x2002, 0, 0, 0);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("which is no free page"));
}

TEST_F(BrokenLists, PageIsOfAFlaggedBlock) {
  made.guest().free_block(0x2002, 0);
  EXPECT_THAT(doubt(3), HasSubstr("which is no free page"));
}

TEST_F(BrokenLists, PageIsATailOfALargerPage) {
  made.set_next(made.page_link(0x2002), made.page_link(0x2003).address.value | 1);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("which is no free page"));
}

TEST_F(BrokenLists, PageInsideABlockIsInUse) {
  made.guest().set_page(0x2017, 1, ~u32{0}, 0);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("the page at 0x2010000 is listed as free, but is in use"));
}

TEST_F(BrokenLists, PageInTheMiddleOfABlockIsInUse) {
  made.guest().set_page(0x2013, 1, ~u32{0}, 0);
  made.unuse(0x2018, 0);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("the page at 0x2010000 is listed as free, but is in use"));
}

TEST_F(BrokenLists, BlockIsNotAligned) {
  made.list_block(0, 1, kOrder3, 0x2024, 3);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("the block at 0x2024000 is not aligned"));
}

TEST_F(BrokenLists, BlockIsNotAllRam) {
  made.list_block(0, 0, kOrder3, 0x98, 3);  // RAM ends at 0xa0
  EXPECT_EQ(find().per_cpu, 21u);
  made.list_block(0, 0, kOrder3, 0xa0, 3);
  EXPECT_THAT(doubt(12), HasSubstr("0xa0000 is not RAM"));
}

TEST_F(BrokenLists, PageIsTwiceInOneList) {
  // A ring that comes back to its second page, whose backward link can be right once only.
  made.set_next(made.page_link(0x2003), made.page_link(0x2002).address.value);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("the list is broken at"));
}

TEST_F(BrokenLists, PageIsInTwoLists) {
  // Of a block, which has its own link, and on its own.
  made.list_block(0, 1, kOrder0, 0x2013, 0);
  EXPECT_THAT(doubt_of_cpu(), HasSubstr("0x2010000 is listed twice"));
}

TEST_F(BrokenLists, PageIsInListsOfTwoCpus) {
  made.list_block(1, 1, kOrder0, 0x2013, 0);
  // The CPU that is looked at first keeps its pages; the other one has none.
  EXPECT_THAT(doubt(12), HasSubstr("0x2013000 is listed twice"));
}

TEST_F(BrokenLists, ListLeadsNowhere) {
  for (const u64 address :
       {u64{0}, u64{8}, made.guest().vmemmap().value + 0x2002 * 64, made.guest().vmemmap().value - 56,
        made.guest().vmemmap().value + u64{0x3000} * 64 + 8, ~u64{0}, u64{0xdead'0000'0000'0100}}) {
    made.set_next(made.page_link(0x2001), address);
    EXPECT_THAT(find().list_doubts, ElementsAre(HasSubstr("which is no free page"))) << address;
    EXPECT_EQ(find().per_cpu, 2u);
  }
}

TEST_F(BrokenLists, ListOfAnotherZonesCpuIsNotThatOfThisOne) {
  // Both heads show the same pages, as when an offset is taken for another CPU's.
  const auto mine = made.pcp_list(1, 1, kOrder0), other = made.pcp_list(0, 1, kOrder0);
  made.memory().write_le(mine.at, made.memory().read_u64(other.at));
  made.memory().write_le(mine.at + 8, made.memory().read_u64(other.at + 8));
  const FreePages found = find();
  EXPECT_THAT(found.list_doubts, ElementsAre(HasSubstr("the list is broken at")));
  EXPECT_EQ(found.per_cpu, 12u);
}

TEST_F(BrokenLists, OffsetOfAnotherCpuIsADoubt) {
  // CPU 1's offset is CPU 0's: the lists hold the first time, and are not taken twice.
  made.memory().write_le(FakeAllocator::kCpuOffsets + 8, made.cpu_offset(0));
  const FreePages found = find();
  EXPECT_EQ(found.per_cpu, 12u);
  EXPECT_THAT(found.list_doubts, ElementsAre(HasSubstr("is listed twice"), HasSubstr("is listed twice")));
}

TEST_F(BrokenLists, OffsetIntoOtherDataIsADoubt) {
  made.memory().write_le(FakeAllocator::kCpuOffsets, made.cpu_offset(0) + 8);
  const FreePages found = find();
  EXPECT_EQ(found.per_cpu, 1u);
  EXPECT_THAT(found.list_doubts, SizeIs(2));  // one for each zone
}

TEST_F(BrokenLists, OffsetIntoNowhereIsADoubt) {
  made.memory().write_le(FakeAllocator::kCpuOffsets, u64{0});
  const FreePages found = find();
  EXPECT_EQ(found.per_cpu, 1u);
  EXPECT_THAT(found.list_doubts, ElementsAre(HasSubstr("cannot be read"), HasSubstr("cannot be read")));
}

TEST_F(BrokenLists, ZoneThatCannotBeReadIsADoubt) {
  AllocatorLayout layout = made.layout();
  layout.per_cpu->pointer_offset = 1 * kGiB;
  FindOptions options;
  options.allocator = &layout;
  const auto found = find_free_pages(made.memory(), made.guest().kernel(), options);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->count, 0u);
  EXPECT_THAT(found->list_doubts, ElementsAre(HasSubstr("cannot be read"), HasSubstr("cannot be read")));
}

TEST_F(BrokenLists, MoreCpusAndZonesThanAnyMachineHasAreADoubt) {
  AllocatorLayout layout = made.layout();
  layout.per_cpu->cpu_offsets.assign(40'000, made.cpu_offset(0));
  FindOptions options;
  options.allocator = &layout;
  const auto found = find_free_pages(made.memory(), made.guest().kernel(), options);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->count, 0u);
  EXPECT_THAT(found->list_doubts, ElementsAre("2 zones and 40000 CPUs are more than any machine has"));
}

TEST_F(BrokenLists, ManyDoubtsAreNotAllTold) {
  AllocatorLayout layout = made.layout();
  layout.per_cpu->cpu_offsets.assign(1000, 0);
  FindOptions options;
  options.allocator = &layout;
  const auto found = find_free_pages(made.memory(), made.guest().kernel(), options);
  ASSERT_TRUE(found.ok());
  EXPECT_THAT(found->list_doubts, SizeIs(16));
}

TEST_F(BrokenLists, ListThatManyCpusShareIsWalkedOnce) {
  // 3000 pages, a counter that is wrong, and a thousand CPUs: a few thousand steps, not three million.
  for (u64 i = 0; i < 3000; ++i) {
    if (!made.guest().memory().is_ram(Pfn{0x2200 + i})) break;
    made.list_block(0, 1, kOrder0, 0x2200 + i, 0);
  }
  made.count_pages(0, 1, 1);
  AllocatorLayout layout = made.layout();
  layout.per_cpu->cpu_offsets.assign(1000, made.cpu_offset(0));
  FindOptions options;
  options.allocator = &layout;
  const auto found = find_free_pages(made.memory(), made.guest().kernel(), options);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->per_cpu, 1u);  // of zone 0
}

TEST_F(BrokenLists, MemoryMapInPiecesIsNotWalked) {
  // Without CONFIG_SPARSEMEM_VMEMMAP each section has a map of its own.
  const u64 coded = made.memory().read_u64(made.guest().section_entry(2));
  made.memory().write_le(made.guest().section_entry(2), coded - 64 * 0x1000);
  const AllocatorLayout layout = made.layout();
  FindOptions options;
  options.allocator = &layout;
  const auto found = find_free_pages(made.memory(), made.guest().kernel(), options);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->per_cpu, 0u);
  EXPECT_EQ(found->hugetlb, 0u);
}

// ---- trylock lists ----

class TrylockLists : public ListedPagesTest {
 protected:
  TrylockLists() {
    made.trylock_block(1, 0x2003, 0);
    made.trylock_block(1, 0x2010, 4);
    made.trylock_block(1, 0x2400, 10);
  }
};

TEST_F(TrylockLists, HoldBlocksOfAnyOrder) {
  const FreePages found = find();
  EXPECT_EQ(found.per_cpu, 1u + 16 + 1024);
  EXPECT_THAT(found.list_doubts, IsEmpty());
}

TEST_F(TrylockLists, ImpossibleOrderIsADoubt) {
  for (const u64 order : {u64{11}, u64{63}, ~u64{0}}) {
    made.memory().write_le(made.guest().struct_page(0x2010) + 40, order);
    EXPECT_THAT(doubt(), HasSubstr("a block of an impossible order"));
  }
}

TEST_F(TrylockLists, OrderThatIsTooHighIsADoubt) {
  made.memory().write_le(made.guest().struct_page(0x2010) + 40, u64{5});
  EXPECT_THAT(doubt(), HasSubstr("is not aligned"));
  made.memory().write_le(made.guest().struct_page(0x2003) + 40, u64{0});
  made.memory().write_le(made.guest().struct_page(0x2010) + 40, u64{4});
  made.guest().set_page(0x2018, 1, ~u32{0}, 0);
  EXPECT_THAT(doubt(), HasSubstr("is listed as free, but is in use"));
}

TEST_F(TrylockLists, ListIntoNowhereIsADoubt) {
  made.memory().write_le(made.guest().struct_page(0x2010) + 8, u64{0xdead'beef'0000'0000});
  EXPECT_THAT(doubt(), HasSubstr("which is no page"));
}

TEST_F(TrylockLists, RingIsADoubt) {
  made.memory().write_le(made.guest().struct_page(0x2003) + 8, made.page_link(0x2010).address.value);
  EXPECT_THAT(doubt(), HasSubstr("is listed twice"));
}

TEST_F(TrylockLists, PageThatIsOnAPerCpuListTooIsADoubt) {
  made.list_block(0, 1, kOrder0, 0x2013, 0);
  EXPECT_THAT(doubt(1), HasSubstr("is listed twice"));
}

TEST_F(TrylockLists, PageInUseIsADoubt) {
  made.guest().set_page(0x2400, 1, ~u32{0}, 10);
  EXPECT_THAT(doubt(), HasSubstr("is listed as free, but is in use"));
}

TEST_F(TrylockLists, ListThatIsTooLongIsADoubt) {
  // 4096 blocks are the limit; each of 3072 pages and then some again would be a ring.
  for (u64 pfn = 0x200; pfn < 0x1000; ++pfn) made.trylock_block(0, pfn, 0);
  for (u64 pfn = 0x1700; pfn < 0x1c00; ++pfn) made.trylock_block(0, pfn, 0);
  EXPECT_THAT(doubt(1041), HasSubstr("its trylock list leads to"));
}

TEST_F(TrylockLists, PageWhoseStructureIsGoneIsADoubt) {
  FakeAllocator other({.guest = {.small_vmemmap_pages = true}});
  other.trylock_block(1, 0x2003, 0);
  other.memory().write_le(other.guest().tables().entry(other.guest().vmemmap() + 0x2003 * 64, 12), u64{0});
  const AllocatorLayout layout = other.layout();
  FindOptions options;
  options.allocator = &layout;
  const auto found = find_free_pages(other.memory(), other.guest().kernel(), options);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->count, 0u);
  EXPECT_THAT(found->list_doubts, ElementsAre(HasSubstr("its trylock list cannot be read")));
}

// ---- hugetlb pools ----

class HugetlbPools : public ListedPagesTest {
 protected:
  HugetlbPools() {
    made.pool_page(0, 0, 0x2000, 9);
    made.pool_page(0, 0, 0x2400, 9);
    made.pool_page(0, 0, 0x2600, 9);
    made.pool_page(0, 1, 0x0800, 9);
    made.pool_page(1, 0, 0x2800, 10);
  }
  // All but the three pages of the first pool's first node are left out.
  std::string doubt_of_pool() { return doubt(512 + 1024); }
};

TEST_F(HugetlbPools, FreePagesAreFound) {
  const FreePages found = find();
  EXPECT_EQ(found.hugetlb, 4u * 512 + 1024);
  EXPECT_THAT(found.runs, ElementsAre(PfnRange{Pfn{0x800}, 512}, PfnRange{Pfn{0x2000}, 512},
                                      PfnRange{Pfn{0x2400}, 2048}));
  EXPECT_THAT(found.list_doubts, IsEmpty());
}

TEST_F(HugetlbPools, AreLookedForOnlyWhenWanted) {
  const AllocatorLayout layout = made.layout();
  FindOptions options;
  options.allocator = &layout;
  options.kinds.hugetlb = false;
  EXPECT_EQ(find_free_pages(made.memory(), made.guest().kernel(), options)->count, 0u);
}

TEST_F(HugetlbPools, LockIsHeld) {
  made.memory().write_le(FakeAllocator::kHugetlbLock, u32{1});
  EXPECT_THAT(doubt(), HasSubstr("somebody is at work"));
}

TEST_F(HugetlbPools, LockThatCannotBeReadIsADoubt) {
  made.move_symbol("hugetlb_lock", GuestVirtual{0xffff'ffff'f000'0000});
  EXPECT_THAT(doubt(), HasSubstr("somebody is at work"));
}

TEST_F(HugetlbPools, CounterIsOneTooLow) {
  made.memory().write_le(made.pool(0) + FakeAllocator::kPoolCounts, u32{2});
  EXPECT_EQ(doubt_of_pool(), "hugetlb pool 0 node 0: its list does not end where its counter says");
}

TEST_F(HugetlbPools, CounterIsOneTooHigh) {
  made.memory().write_le(made.pool(0) + FakeAllocator::kPoolCounts, u32{4});
  EXPECT_THAT(doubt_of_pool(), HasSubstr("which is no huge page"));
}

TEST_F(HugetlbPools, CounterIsImpossible) {
  made.memory().write_le(made.pool(0) + FakeAllocator::kPoolCounts, ~u32{0});
  EXPECT_THAT(doubt_of_pool(), HasSubstr("4294967295 pages of order 9 are too many"));
}

TEST_F(HugetlbPools, OrderIsImpossible) {
  for (const u32 order : {0u, 31u, 64u, ~0u}) {
    made.memory().write_le(made.pool(0), order);
    const FreePages found = find();
    EXPECT_EQ(found.hugetlb, 1024u);
    EXPECT_THAT(found.list_doubts, SizeIs(2));  // of two nodes
  }
}

TEST_F(HugetlbPools, BackwardLinkIsWrong) {
  made.set_prev(made.page_link(0x2400), made.page_link(0x2600).address.value);
  EXPECT_THAT(doubt_of_pool(), HasSubstr("the list is broken at"));
}

TEST_F(HugetlbPools, BackwardLinkOfHeadIsWrong) {
  made.set_prev(made.pool_list(0, 0), made.page_link(0x2400).address.value);
  EXPECT_THAT(doubt_of_pool(), HasSubstr("does not end where its counter says"));
}

TEST_F(HugetlbPools, PageIsInUse) {
  made.guest().set_page(0x2400, 1, 0xf400'0000, 0);
  EXPECT_THAT(doubt_of_pool(), HasSubstr("the huge page at 0x2400000 is listed as free, but is in use"));
}

TEST_F(HugetlbPools, PageIsNotAligned) {
  made.pool_page(0, 0, 0x2d00, 9);
  EXPECT_THAT(doubt_of_pool(), HasSubstr("which is no huge page"));
}

TEST_F(HugetlbPools, PageIsNotAllRam) {
  made.pool_page(0, 0, 0x0, 9);
  EXPECT_THAT(doubt_of_pool(), HasSubstr("which is no huge page"));
}

TEST_F(HugetlbPools, PageIsNotDescribed) {
  made.memory().write_le(made.pool(0), u32{13});  // longer than what follows it
  const FreePages found = find();
  EXPECT_EQ(found.hugetlb, 1024u);
  EXPECT_THAT(found.list_doubts, ElementsAre(HasSubstr("no huge page"), HasSubstr("no huge page")));
}

TEST_F(HugetlbPools, PageIsTwiceInOneList) {
  made.set_next(made.page_link(0x2600), made.page_link(0x2400).address.value);
  made.memory().write_le(made.pool(0) + FakeAllocator::kPoolCounts, u32{60'000});
  EXPECT_THAT(doubt_of_pool(), HasSubstr("the list is broken at"));
}

TEST_F(HugetlbPools, PageIsInTwoPools) {
  made.pool_page(1, 1, 0x2400, 10);  // over two of the first pool's
  made.set_next(made.page_link(0x2000), made.pool_list(0, 0).address.value);
  made.set_prev(made.pool_list(0, 0), made.page_link(0x2000).address.value);
  made.memory().write_le(made.pool(0) + FakeAllocator::kPoolCounts, u32{1});
  EXPECT_EQ(find().hugetlb, 512u + 512 + 2 * 1024);
  made.pool_page(0, 1, 0x2600, 9);
  EXPECT_EQ(doubt(), "hugetlb: pools overlap");
}

TEST_F(HugetlbPools, ListLeadsNowhere) {
  for (const u64 address :
       {u64{0}, u64{0xdead'0000'0000'0100}, made.guest().vmemmap().value + u64{0x4000} * 64 + 8}) {
    made.set_next(made.page_link(0x2000), address);
    EXPECT_THAT(doubt_of_pool(), HasSubstr("which is no huge page"));
  }
}

TEST_F(HugetlbPools, PoolThatCannotBeReadIsADoubt) {
  made.move_symbol("hstates", GuestVirtual{0xffff'ffff'f000'0000});
  EXPECT_THAT(find().list_doubts,
              ElementsAre("hugetlb pool 0 cannot be read", "hugetlb pool 1 cannot be read"));
}

TEST_F(HugetlbPools, PageWhoseStructureIsGoneIsADoubt) {
  FakeAllocator other({.guest = {.small_vmemmap_pages = true}});
  other.pool_page(0, 0, 0x2000, 9);
  other.memory().write_le(other.guest().tables().entry(other.guest().vmemmap() + 0x2000 * 64, 12), u64{0});
  const AllocatorLayout layout = other.layout();
  FindOptions options;
  options.allocator = &layout;
  const auto found = find_free_pages(other.memory(), other.guest().kernel(), options);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->count, 0u);
  EXPECT_THAT(found->list_doubts,
              ElementsAre(HasSubstr("the structure of the huge page at 0x2000000 cannot be read")));
}

TEST_F(HugetlbPools, PoolLargerThanAnyStructureIsNotRead) {
  AllocatorLayout layout = made.layout();
  layout.hugetlb->hstate_bytes = 2 * kMiB;
  FindOptions options;
  options.allocator = &layout;
  EXPECT_EQ(find_free_pages(made.memory(), made.guest().kernel(), options)->hugetlb, 0u);
}

}  // namespace
}  // namespace vmsieve
