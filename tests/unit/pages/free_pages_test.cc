// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/free_pages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_guest.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using vmsieve::testing::FakeGuest;
using vmsieve::testing::FakeGuestOptions;

// A guest in which every check passes: two zones, free blocks in both.
class FreePagesTest : public ::testing::Test {
 protected:
  explicit FreePagesTest(FakeGuestOptions options = {}) : guest(std::move(options)) {
    guest.free_block(0x800, 3);
    guest.free_block(0x808, 0);
    guest.free_block(0x2000, 10);
  }

  FreePages find(unsigned threads = 2) {
    auto found = find_free_pages(guest.memory(), guest.kernel(), {.threads = threads});
    EXPECT_TRUE(found.ok()) << found.error().message();
    return found.ok() ? *std::move(found) : FreePages{};
  }
  Error failure() {
    const auto found = find_free_pages(guest.memory(), guest.kernel(), {.threads = 2});
    return found.ok() ? Error(ErrorKind::kUsage, "no failure") : found.error();
  }
  // The one doubt, after which nothing of zone 1 is left out.
  std::string doubt_of_zone_1() {
    const FreePages found = find();
    EXPECT_THAT(found.runs, ElementsAre(PfnRange{Pfn{0x800}, 9})) << "zone 0 must stay, zone 1 must not";
    EXPECT_EQ(found.doubts.size(), 1u);
    return found.doubts.empty() ? "" : found.doubts[0];
  }

  FakeGuest guest;
};

// ---- what is found ----

TEST_F(FreePagesTest, FindsFreeBlocksAsRuns) {
  const FreePages found = find();
  EXPECT_THAT(found.runs, ElementsAre(PfnRange{Pfn{0x800}, 9}, PfnRange{Pfn{0x2000}, 0x400}));
  EXPECT_EQ(found.count, 0x409u);
  EXPECT_EQ(found.described, 0xa0u + 0x2f00u);
  EXPECT_THAT(found.doubts, IsEmpty());
  EXPECT_EQ(found.fill, 0);
}

TEST_F(FreePagesTest, AnyNumberOfThreadsFindsTheSame) {
  for (const unsigned threads : {0U, 1U, 3U, 1000U}) EXPECT_EQ(find(threads).count, 0x409u) << threads;
}

TEST_F(FreePagesTest, GuestWithoutFreePagesHasNone) {
  FakeGuest busy;
  const auto found = find_free_pages(busy.memory(), busy.kernel(), {.threads = 1});
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->count, 0u);
  EXPECT_THAT(found->doubts, IsEmpty());
}

TEST_F(FreePagesTest, JoinsRunsOverZonesAndSections) {
  guest.free_block(0x0c00, 10);
  guest.free_block(0x1000, 2);
  EXPECT_THAT(find().runs, ElementsAre(PfnRange{Pfn{0x800}, 9}, PfnRange{Pfn{0xc00}, 0x404},
                                       PfnRange{Pfn{0x2000}, 0x400}));
}

class FreePagesVariants : public FreePagesTest, public ::testing::WithParamInterface<FakeGuestOptions> {
 protected:
  FreePagesVariants() : FreePagesTest(GetParam()) {}
};
INSTANTIATE_TEST_SUITE_P(Kernels, FreePagesVariants,
                         ::testing::Values(FakeGuestOptions{.levels = 5},
                                           FakeGuestOptions{.small_vmemmap_pages = true},
                                           FakeGuestOptions{.page_bytes = 56},
                                           FakeGuestOptions{.page_bytes = 96},
                                           FakeGuestOptions{.buddy_type = 0xffff'ff7f}));

TEST_P(FreePagesVariants, FindsTheSame) { EXPECT_EQ(find().count, 0x409u); }

// ---- check D: the page of VMCOREINFO is in use ----

TEST_F(FreePagesTest, RefusesMapInWhichVmcoreInfoIsFree) {
  guest.free_block(0x1100, 0);
  EXPECT_EQ(failure().kind(), ErrorKind::kIncompatible);
  EXPECT_THAT(failure().message(), HasSubstr("not in use by the kernel"));
}

TEST_F(FreePagesTest, RefusesMapInWhichVmcoreInfoIsInsideFreeBlock) {
  guest.free_block(0x1100, 4);
  guest.set_page(0x1100, 0, ~u32{0}, 0);
  EXPECT_EQ(failure().kind(), ErrorKind::kIncompatible);
}

TEST_F(FreePagesTest, RefusesMapInWhichVmcoreInfoIsShared) {
  guest.set_page(0x1100, 2, ~u32{0}, 0);
  EXPECT_EQ(failure().kind(), ErrorKind::kIncompatible);
}

TEST_F(FreePagesTest, RefusesMapInWhichVmcoreInfoIsMapped) {
  guest.set_page(0x1100, 1, 0, 0);
  EXPECT_EQ(failure().kind(), ErrorKind::kIncompatible);
}

TEST_F(FreePagesTest, RefusesMapInWhichVmcoreInfoIsReclaimable) {
  guest.set_page(0x1100, 1, ~u32{0}, 0, 1 << 5);
  EXPECT_EQ(failure().kind(), ErrorKind::kIncompatible);
}

TEST_F(FreePagesTest, RefusesVmcoreInfoThatNoSectionDescribes) {
  guest.memory().write_le(guest.section_entry(1), u64{0});
  EXPECT_THAT(failure().message(), HasSubstr("in no online memory section"));
}

// ---- check E: flags and counters agree, zone by zone ----

TEST_F(FreePagesTest, DoubtsZoneThatCountsFewerBlocks) {
  guest.flag_block(0x2800, 4);
  EXPECT_EQ(doubt_of_zone_1(), "node 0 zone 1, order 4: the kernel counts 0 free blocks, 1 are flagged");
}

TEST_F(FreePagesTest, DoubtsZoneThatCountsMoreBlocks) {
  guest.memory().write_le(guest.nr_free(1, 10), u64{2});
  EXPECT_EQ(doubt_of_zone_1(), "node 0 zone 1, order 10: the kernel counts 2 free blocks, 1 are flagged");
}

TEST_F(FreePagesTest, DoubtsZoneWhoseOrdersAreExchanged) {
  guest.flag_block(0x2000, 9);
  guest.flag_block(0x2200, 9);  // as much memory as was counted
  EXPECT_THAT(doubt_of_zone_1(), HasSubstr("order 9"));
}

TEST_F(FreePagesTest, DoesNotAddUpZones) {
  // One block too few here is not made good by one too many there.
  guest.memory().write_le(guest.nr_free(1, 3), u64{1});
  guest.memory().write_le(guest.nr_free(0, 3), u64{0});
  const FreePages found = find();
  EXPECT_EQ(found.count, 0u);
  EXPECT_EQ(found.doubts.size(), 2u);
}

TEST_F(FreePagesTest, BlockInNoZoneIsDoubtAboutEverything) {
  guest.memory().write_le(guest.zone(1) + 80, u64{0x1400});
  guest.memory().write_le(guest.zone(1) + 96, u64{0x1c00});
  guest.memory().write_le(guest.zone(1) + 104, u64{0x1c00});
  guest.flag_block(0x1200, 0);
  const FreePages found = find();
  EXPECT_EQ(found.count, 0u);
  EXPECT_THAT(found.doubts, ElementsAre("the free block at 0x1200000 is in no memory zone of the guest"));
}

TEST_F(FreePagesTest, MalformedBlockInNoZoneIsDoubtAboutEverything) {
  guest.set_page(0, 0, guest.options().buddy_type, 99);
  const FreePages found = find();
  EXPECT_EQ(found.count, 0u);
  EXPECT_THAT(found.doubts, ElementsAre("the free block at 0x0 is in no memory zone of the guest"));
}

TEST_F(FreePagesTest, ZonesThatCannotBeToldApartAreSummed) {
  guest.memory().write_le(guest.zone(1) + 80, u64{0});  // outside its node
  EXPECT_EQ(find().count, 0x409u);
  guest.flag_block(0x2800, 0);
  EXPECT_EQ(find().count, 0u);
}

// ---- check F: every block is well-formed ----

TEST_F(FreePagesTest, DoubtsZoneWithImpossibleOrder) {
  guest.set_page(0x2000, 0, guest.options().buddy_type, 11);
  EXPECT_THAT(doubt_of_zone_1(), HasSubstr("at 0x2000000 is malformed, its order is impossible"));
}

TEST_F(FreePagesTest, DoubtsZoneWithMisalignedBlock) {
  guest.free_block(0x2801, 1);
  EXPECT_THAT(doubt_of_zone_1(), HasSubstr("not aligned"));
}

TEST_F(FreePagesTest, DoubtsZoneWithHeadInUse) {
  guest.set_page(0x2000, 1, guest.options().buddy_type, 10);
  EXPECT_THAT(doubt_of_zone_1(), HasSubstr("its first page is in use"));
}

TEST_F(FreePagesTest, DoubtsZoneWithPageInUseInsideABlock) {
  guest.set_page(0x23ff, 1, ~u32{0}, 0);
  EXPECT_THAT(doubt_of_zone_1(), HasSubstr("a page inside is in use"));
}

TEST_F(FreePagesTest, DoubtsZoneWithMappedPageInsideABlock) {
  guest.set_page(0x2001, 0, 3, 0);
  EXPECT_THAT(doubt_of_zone_1(), HasSubstr("a page inside is in use"));
}

TEST_F(FreePagesTest, DoubtsZoneWithBlockInsideABlock) {
  guest.free_block(0x2200, 9);
  EXPECT_THAT(doubt_of_zone_1(), HasSubstr("a page inside is in use"));
}

TEST_F(FreePagesTest, DoubtsZoneWithBlockThatIsNotAllRam) {
  guest.free_block(0x80, 6);  // RAM ends at 0xa0
  const FreePages found = find();
  EXPECT_THAT(found.runs, ElementsAre(PfnRange{Pfn{0x2000}, 0x400}));
  EXPECT_THAT(found.doubts, ElementsAre(HasSubstr("part of it is not RAM")));
}

TEST_F(FreePagesTest, DoubtsZoneWithBlockInAHole) {
  guest.free_block(0xc0, 0);
  EXPECT_THAT(find().doubts, ElementsAre(HasSubstr("part of it is not RAM")));
}

TEST_F(FreePagesTest, TakesBlockThatEndsWithItsRamRange) {
  guest.free_block(0x80, 5);
  EXPECT_EQ(find().count, 0x429u);
}

// ---- check H: what is not described is saved ----

TEST_F(FreePagesTest, PagesOfOfflineSectionAreSaved) {
  FakeGuest other;
  other.free_block(0x2000, 10);
  other.memory().write_le(other.section_entry(2), other.vmemmap().value | 0xb);
  const auto found = find_free_pages(other.memory(), other.kernel(), {.threads = 1});
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->count, 0u);
  EXPECT_EQ(found->described, 0xa0u + 0x1f00u);
}

TEST_F(FreePagesTest, SectionWithUnmappedStructPagesIsDoubted) {
  FakeGuest other({.small_vmemmap_pages = true});
  other.free_block(0x800, 3);
  other.memory().write_le(other.tables().entry(other.vmemmap() + 0x2000 * 64, 12), u64{0});
  const auto found = find_free_pages(other.memory(), other.kernel(), {.threads = 2});
  ASSERT_TRUE(found.ok());
  EXPECT_THAT(found->runs, ElementsAre(PfnRange{Pfn{0x800}, 8}));
  EXPECT_THAT(found->doubts, ElementsAre(HasSubstr("memory section at 0x2000000 cannot be read")));
  EXPECT_EQ(found->described, 0xa0u + 0x1f00u);
}

// ---- hazard 18: struct pages that share a page ----

TEST_F(FreePagesTest, SharedStructPagesAreReadWhereTheTablesSay) {
  FakeGuest other({.small_vmemmap_pages = true});
  other.free_block(0x2000, 10);
  // Struct pages 0x2800 to 0x2bff: a huge page whose tails all show its first page of struct pages.
  for (u64 pfn = 0x2840; pfn < 0x2c00; pfn += 64) {
    other.flag_block(pfn, 0);  // what the frames given back by then hold is not looked at
    other.tables().map(other.vmemmap() + pfn * 64, other.struct_page(0x2800), 12);
  }
  const auto found = find_free_pages(other.memory(), other.kernel(), {.threads = 2});
  ASSERT_TRUE(found.ok());
  EXPECT_THAT(found->doubts, IsEmpty());
  EXPECT_EQ(found->count, 0x400u);
}

// ---- hostile and failing guests ----

TEST_F(FreePagesTest, MissingKeyIsAnError) {
  guest.set_key("SIZE(page)", "");
  EXPECT_EQ(failure().kind(), ErrorKind::kUnsupported);
}

TEST_F(FreePagesTest, ZonesOutsideMemoryAreAnError) {
  guest.memory().write_le(FakeGuest::kNodeData, u64{0xdead'0000'0000'0000});
  EXPECT_THAT(failure().message(), HasSubstr("reading the guest's memory zones"));
}

TEST_F(FreePagesTest, AllPagesFlaggedFreeEndsBounded) {
  for (u64 pfn = 0; pfn < 0x3000; ++pfn) {
    if (pfn != 0x1100) guest.set_page(pfn, 0, guest.options().buddy_type, 10);
  }
  EXPECT_EQ(find().count, 0u);
}

// Fails every read of struct pages from the second one on: QEMU dies during the scan.
class DyingMemory : public vmsieve::testing::FakeMemory {
 public:
  explicit DyingMemory(const FakeMemory& memory) : FakeMemory(memory) {}
  Result<void> read(GuestPhysical address, std::span<std::byte> out) const override {
    if (out.size() > kPageSize) return Error(ErrorKind::kVanished, "QEMU went away");
    return FakeMemory::read(address, out);
  }
};

TEST_F(FreePagesTest, FailureToReadStructPagesIsAnError) {
  const DyingMemory memory(guest.memory());
  const auto found = find_free_pages(memory, guest.kernel(), {.threads = 2});
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.error().kind(), ErrorKind::kVanished);
  EXPECT_THAT(found.error().message(), HasSubstr("reading the guest's page structures"));
}

TEST_F(FreePagesTest, FailureToReadTheGuestIsAnError) {
  guest.memory().fail_reads = true;
  EXPECT_EQ(failure().kind(), ErrorKind::kVanished);
}

// ---- what an earlier look has found ----

class EarlierLook : public FreePagesTest {
 protected:
  EarlierLook() {
    EXPECT_EQ(look().count, 0x409u);
    EXPECT_EQ(earlier.reused, 0u);  // nobody says what was written
    earlier.unwritten = [this](const PhysicalExtent& extent) {
      asked.push_back(extent);
      return unwritten;
    };
  }
  FreePages look() {
    auto found = find_free_pages(guest.memory(), guest.kernel(), {.threads = 1, .earlier = &earlier});
    EXPECT_TRUE(found.ok()) << found.error().message();
    return found.ok() ? *std::move(found) : FreePages{};
  }

  EarlierScan earlier;
  bool unwritten = true;
  std::vector<PhysicalExtent> asked;
};

TEST_F(EarlierLook, HoldsWhereNothingWasWritten) {
  const std::size_t sections = earlier.scans.size();
  ASSERT_GT(sections, 1u);
  const FreePages found = look();
  EXPECT_EQ(earlier.reused, sections);
  EXPECT_THAT(found.runs, ElementsAre(PfnRange{Pfn{0x800}, 9}, PfnRange{Pfn{0x2000}, 0x400}));
  EXPECT_EQ(found.described, 0xa0u + 0x2f00u);
  EXPECT_THAT(found.doubts, IsEmpty());
}

TEST_F(EarlierLook, AsksAboutAllStructPages) {
  look();
  u64 bytes = 0;
  for (const PhysicalExtent& extent : asked) bytes += extent.bytes;
  EXPECT_EQ(bytes, 0x3000 * guest.options().page_bytes);
  EXPECT_EQ(asked.front().address, FakeGuest::kStructPages);
}

TEST_F(EarlierLook, IsForgottenWhereSomethingWasWritten) {
  guest.free_block(0x900, 2);
  unwritten = false;
  EXPECT_EQ(look().count, 0x40du);
  EXPECT_EQ(earlier.reused, 0u);
}

// Taken over although something was written, the counters tell (check E).
TEST_F(EarlierLook, ThatIsWrongIsDoubted) {
  guest.free_block(0x900, 2);
  EXPECT_EQ(look().doubts.size(), 1u);
}

TEST_F(EarlierLook, IsForgottenWhereStructPagesLieElsewhere) {
  std::vector<std::byte> moved(2 * kMiB);
  ASSERT_TRUE(guest.memory().read(FakeGuest::kStructPages, moved).ok());
  const GuestPhysical elsewhere{0x280'0000};
  guest.memory().write(elsewhere, moved);
  guest.tables().map(guest.vmemmap(), elsewhere, 21);
  EXPECT_EQ(look().count, 0x409u);
  EXPECT_EQ(earlier.reused, 0u);
}

// ---- hazards 10 and 11: what free pages read as ----

class FillTest : public FreePagesTest {
 protected:
  void fill(u64 first, u64 count, u8 byte) {
    const std::vector<std::byte> page(kPageSize, std::byte{byte});
    for (u64 pfn = first; pfn < first + count; ++pfn) guest.memory().write(Pfn{pfn}.address(), page);
  }
};

TEST_F(FillTest, PoisonOfAllFreePagesIsTheFill) {
  fill(0x800, 9, 0xaa);
  fill(0x2000, 0x400, 0xaa);
  EXPECT_EQ(find().fill, 0xaa);
}

TEST_F(FillTest, PoisonOfMostFreePagesIsTheFill) {
  fill(0x2000, 0x300, 0xaa);
  EXPECT_EQ(find().fill, 0xaa);
}

TEST_F(FillTest, PoisonOfFewFreePagesIsNot) {
  fill(0x2000, 0x100, 0xaa);
  EXPECT_EQ(find().fill, 0);
}

TEST_F(FillTest, UniformPagesOfDifferentBytesAreNoFill) {
  for (u64 i = 0; i < 0x400; ++i) fill(0x2000 + i, 1, static_cast<u8>(1 + i % 200));
  EXPECT_EQ(find().fill, 0);
}

TEST_F(FillTest, OldContentIsNoFill) {
  fill(0x800, 9, 0xaa);
  fill(0x2000, 0x400, 0xaa);
  for (u64 pfn = 0x2000; pfn < 0x2400; ++pfn) guest.memory().write_le(Pfn{pfn}.address() + 4095, u8{1});
  EXPECT_EQ(find().fill, 0);
}

TEST_F(FillTest, OneFreePageTells) {
  FakeGuest other;
  other.free_block(0x2000, 0);
  const std::vector<std::byte> page(kPageSize, std::byte{0xaa});
  other.memory().write(Pfn{0x2000}.address(), page);
  EXPECT_EQ(find_free_pages(other.memory(), other.kernel(), {.threads = 1})->fill, 0xaa);
}

}  // namespace
}  // namespace vmsieve
