// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/allocator_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_allocator.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using ::testing::Optional;
using vmsieve::testing::FakeAllocator;
using vmsieve::testing::FakeAllocatorOptions;

AllocatorLayout layout_of(const FakeAllocatorOptions& options) { return FakeAllocator(options).layout(); }

// ---- per-CPU lists ----

TEST(AllocatorLayoutTest, FindsPerCpuLists) {
  FakeAllocator made;
  const AllocatorLayout layout = made.layout();
  EXPECT_EQ(layout.lru_offset, 8u);
  ASSERT_TRUE(layout.per_cpu);
  EXPECT_THAT(layout.per_cpu->cpu_offsets, ElementsAre(made.cpu_offset(0), made.cpu_offset(1)));
  EXPECT_EQ(layout.per_cpu->pointer_offset, FakeAllocator::kZonePageset);
  EXPECT_EQ(layout.per_cpu->count_offset, 4u);
  EXPECT_EQ(layout.per_cpu->lists_offset, FakeAllocator::kPcpLists);
  EXPECT_THAT(layout.per_cpu->lock_offset, Optional(0u));
}

TEST(AllocatorLayoutTest, ListsAreByOrderWithHugePagesLast) {
  EXPECT_THAT(layout_of({.lists = 14}).per_cpu->list_orders,
              ElementsAre(0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 9, 9));
  EXPECT_THAT(layout_of({.lists = 12}).per_cpu->list_orders, ElementsAre(0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3));
}

TEST(AllocatorLayoutTest, OneTwoOrThreeListsOfHugePages) {
  for (const u32 lists : {13u, 14u, 15u}) {
    const AllocatorLayout layout = layout_of({.lists = lists});
    ASSERT_TRUE(layout.per_cpu) << lists;
    EXPECT_EQ(layout.per_cpu->list_orders.size(), lists);
    EXPECT_EQ(layout.per_cpu->list_orders.back(), 9u);
  }
}

TEST(AllocatorLayoutTest, OneOrderOnly) {
  EXPECT_THAT(layout_of({.lists = 3}).per_cpu->list_orders, ElementsAre(0, 0, 0));
}

TEST(AllocatorLayoutTest, OtherNumberOfMigrateTypes) {
  const AllocatorLayout layout = layout_of({.lists = 17, .pcptypes = 4});
  ASSERT_TRUE(layout.per_cpu);
  EXPECT_EQ(layout.per_cpu->list_orders[15], 3u);
  EXPECT_EQ(layout.per_cpu->list_orders[16], 9u);
}

TEST(AllocatorLayoutTest, NumberOfListsThatIsNotUnderstood) {
  for (const u32 lists : {0u, 1u, 2u, 4u, 11u, 16u, 65u, 3000u})
    EXPECT_FALSE(layout_of({.lists = lists}).per_cpu) << lists;
}

TEST(AllocatorLayoutTest, NumberOfMigrateTypesThatIsNotUnderstood) {
  for (const std::int32_t types : {-1, 0, 9, 1 << 30})
    EXPECT_FALSE(layout_of({.pcptypes = types}).per_cpu) << types;
}

TEST(AllocatorLayoutTest, PagesetInsideAnotherStructure) {
  const AllocatorLayout layout = layout_of({.lists = 3, .pageset = true, .pcp_lock_bytes = 0});
  ASSERT_TRUE(layout.per_cpu);
  EXPECT_EQ(layout.per_cpu->count_offset, FakeAllocator::kPcpInPageset + 4);
  EXPECT_EQ(layout.per_cpu->lists_offset, FakeAllocator::kPcpInPageset + FakeAllocator::kPcpLists);
  EXPECT_FALSE(layout.per_cpu->lock_offset);
}

TEST(AllocatorLayoutTest, LockThatIsNothingIsNone) {
  const AllocatorLayout layout = layout_of({.pcp_lock_bytes = 0, .zone_lock_bytes = 0});
  ASSERT_TRUE(layout.per_cpu);
  EXPECT_FALSE(layout.per_cpu->lock_offset);
  EXPECT_FALSE(layout.zone_lock_offset);
}

TEST(AllocatorLayoutTest, LockOutsideItsStructureMeansNoLists) {
  // Everything up to the lock is read for each CPU and zone.
  EXPECT_FALSE(layout_of({.lock_offset = 0x1fff'fff0}).per_cpu);
  EXPECT_FALSE(layout_of({.lock_offset = 512}).per_cpu);
}

TEST(AllocatorLayoutTest, CounterOfOtherSizeOrPlaceMeansNoLists) {
  EXPECT_FALSE(layout_of({.count_bytes = 8}).per_cpu);
  EXPECT_FALSE(layout_of({.count_offset = 510}).per_cpu);
  EXPECT_FALSE(layout_of({.count_offset = 1 << 20}).per_cpu);
}

TEST(AllocatorLayoutTest, ListsOutsideTheirStructureMeanNoLists) {
  EXPECT_FALSE(layout_of({.pcp_bytes = 280}).per_cpu);
}

TEST(AllocatorLayoutTest, StructureThatIsTooLargeMeansNoLists) {
  EXPECT_TRUE(layout_of({.pcp_bytes = 16 * 1024}).per_cpu);
  EXPECT_FALSE(layout_of({.pcp_bytes = 16 * 1024 + 8}).per_cpu);
}

TEST(AllocatorLayoutTest, UnknownCpusMeanNoLists) {
  FakeAllocator made;
  made.remove_symbol("__per_cpu_offset");
  const AllocatorLayout layout = made.layout();
  EXPECT_FALSE(layout.per_cpu);
  EXPECT_TRUE(layout.hugetlb);
}

// ---- the types must be those of the kernel ----

TEST(AllocatorLayoutTest, TypesOfAnotherPageAreNotBelieved) {
  const AllocatorLayout layout = layout_of({.page_bytes = 56});
  EXPECT_FALSE(layout.per_cpu || layout.hugetlb || layout.trylock || layout.zone_lock_offset ||
               layout.system_state);
}

TEST(AllocatorLayoutTest, TypesOfAnotherZoneAreNotBelieved) {
  const AllocatorLayout layout = layout_of({.zone_bytes = 1536});
  EXPECT_FALSE(layout.per_cpu || layout.hugetlb || layout.trylock || layout.zone_lock_offset ||
               layout.system_state);
}

TEST(AllocatorLayoutTest, LinkOfAnotherSizeIsNotBelieved) {
  const AllocatorLayout layout = layout_of({.lru_bytes = 24});
  EXPECT_FALSE(layout.per_cpu || layout.hugetlb || layout.trylock || layout.zone_lock_offset ||
               layout.system_state);
}

// ---- trylock lists, locks, the state of the system ----

TEST(AllocatorLayoutTest, FindsTrylockList) {
  const AllocatorLayout layout = layout_of({});
  ASSERT_TRUE(layout.trylock);
  EXPECT_EQ(layout.trylock->first_offset, FakeAllocator::kZoneTrylock);
  EXPECT_EQ(layout.trylock->link_offset, 8u);
  EXPECT_FALSE(layout_of({.trylock = false}).trylock);
}

TEST(AllocatorLayoutTest, FindsLockOfZone) {
  const AllocatorLayout layout = layout_of({});
  EXPECT_THAT(layout.zone_lock_offset, Optional(u64{FakeAllocator::kZoneLock}));
  EXPECT_EQ(layout.zone_lock_bytes, 4u);
}

TEST(AllocatorLayoutTest, FindsOwnerOfRealtimeLock) {
  const AllocatorLayout layout = layout_of({.realtime = true});
  EXPECT_THAT(layout.zone_lock_offset, Optional(FakeAllocator::kZoneLock + 24));
  EXPECT_EQ(layout.zone_lock_bytes, 8u);
}

TEST(AllocatorLayoutTest, FindsStateOfSystem) {
  const AllocatorLayout layout = layout_of({});
  ASSERT_TRUE(layout.system_state);
  EXPECT_EQ(layout.system_state->address, FakeAllocator::image(FakeAllocator::kSystemState));
  EXPECT_EQ(layout.system_state->running, FakeAllocator::kRunning);
}

TEST(AllocatorLayoutTest, KernelWithoutNameOfItsStateHasNone) {
  FakeAllocator made;
  made.remove_symbol("system_state");
  EXPECT_FALSE(made.layout().system_state);
}

// ---- hugetlb pools ----

TEST(AllocatorLayoutTest, FindsHugetlbPools) {
  const AllocatorLayout layout = layout_of({});
  ASSERT_TRUE(layout.hugetlb);
  EXPECT_EQ(layout.hugetlb->hstates, FakeAllocator::image(FakeAllocator::kHstates));
  EXPECT_EQ(layout.hugetlb->lock, FakeAllocator::image(FakeAllocator::kHugetlbLock));
  EXPECT_EQ(layout.hugetlb->hstate_bytes, 64u);
  EXPECT_EQ(layout.hugetlb->pools, 2u);
  EXPECT_EQ(layout.hugetlb->nodes, 2u);
  EXPECT_EQ(layout.hugetlb->free_count_offset, FakeAllocator::kPoolCounts);
  EXPECT_EQ(layout.hugetlb->freelists_offset, FakeAllocator::kPoolLists);
}

TEST(AllocatorLayoutTest, KernelWithoutHugetlbHasNoPools) {
  const AllocatorLayout layout = layout_of({.hugetlb = false});
  EXPECT_FALSE(layout.hugetlb);
  EXPECT_TRUE(layout.per_cpu);
}

TEST(AllocatorLayoutTest, ListsAndCountersOfDifferentNodesMeanNoPools) {
  EXPECT_FALSE(layout_of({.hugetlb_list_nodes = 1}).hugetlb);
}

TEST(AllocatorLayoutTest, ListsOutsideTheirPoolMeanNoPools) {
  EXPECT_FALSE(layout_of({.hstate_bytes = 40}).hugetlb);
}

TEST(AllocatorLayoutTest, MorePoolsThanPageSizesMeanNone) {
  FakeAllocator made;
  made.memory().write_le(FakeAllocator::kMaxHstate, u32{17});
  EXPECT_FALSE(made.layout().hugetlb);
}

TEST(AllocatorLayoutTest, NumberOfPoolsThatCannotBeReadMeansNone) {
  FakeAllocator made;
  made.move_symbol("hugetlb_max_hstate", GuestVirtual{0xffff'ffff'f000'0000});
  EXPECT_FALSE(made.layout().hugetlb);
}

}  // namespace
}  // namespace vmsieve
