// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/x86_paging.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_tables.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using vmsieve::testing::FakeMemory;
using vmsieve::testing::FakeTables;

class CountingMemory : public FakeMemory {
 public:
  using FakeMemory::FakeMemory;
  Result<void> read(GuestPhysical address, std::span<std::byte> out) const override {
    ++reads;
    return FakeMemory::read(address, out);
  }
  mutable int reads = 0;
};

class Paging : public ::testing::TestWithParam<u32> {
 protected:
  // In the lower and in the upper half; both canonical with 4 levels.
  static constexpr GuestVirtual kUser{0x7f12'4000'0000};
  static constexpr GuestVirtual kKernel{0xffff'ea00'4000'0000};

  CountingMemory memory{{{Pfn{0}, 0x4000}}};
  FakeTables tables{memory, GetParam(), Pfn{0x100}, Pfn{0x101}};

  ErrorKind failure(GuestVirtual address) const {
    const auto result = translate(memory, tables.root(), address);
    return result.ok() ? ErrorKind::kUsage : result.error().kind();
  }
  std::vector<PhysicalExtent> range(GuestVirtual address, u64 bytes) const {
    const auto result = translate_range(memory, tables.root(), address, bytes);
    EXPECT_TRUE(result.ok()) << result.error().message();
    return result.ok() ? *result : std::vector<PhysicalExtent>{};
  }
};

INSTANTIATE_TEST_SUITE_P(Levels, Paging, ::testing::Values(4, 5));

TEST_P(Paging, TranslatesThroughSmallPage) {
  tables.map(kUser, GuestPhysical{0x5000}, 12);
  const auto found = translate(memory, tables.root(), kUser + 0x123);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(*found, GuestPhysical{0x5123});
}

TEST_P(Paging, TranslatesThroughLargePages) {
  tables.map(kKernel, GuestPhysical{0x4000'0000}, 30);
  tables.map(kUser, GuestPhysical{0x60'0000}, 21);
  EXPECT_EQ(*translate(memory, tables.root(), kKernel + 0x1234'5678), GuestPhysical{0x5234'5678});
  EXPECT_EQ(*translate(memory, tables.root(), kUser + 0x12'3456), GuestPhysical{0x72'3456});
}

TEST_P(Paging, IgnoresAttributeBitInLargePageAddress) {
  tables.map(kKernel, GuestPhysical{0x60'0000}, 21);
  const GuestPhysical entry = tables.entry(kKernel, 21);
  memory.write_le(entry, memory.read_u64(entry) | 1 << 12);  // PAT
  EXPECT_EQ(*translate(memory, tables.root(), kKernel), GuestPhysical{0x60'0000});
}

TEST_P(Paging, UnmappedAddressIsNotFound) {
  tables.map(kUser, GuestPhysical{0x5000}, 12);
  EXPECT_EQ(failure(kUser + kPageSize), ErrorKind::kNotFound);
  EXPECT_EQ(failure(kKernel), ErrorKind::kNotFound);
}

TEST_P(Paging, NonCanonicalAddressIsNotFound) {
  EXPECT_EQ(failure(GuestVirtual{0x8000'0000'0000'0000}), ErrorKind::kNotFound);
  EXPECT_EQ(failure(GuestVirtual{0x7fff'ffff'ffff'ffff}), ErrorKind::kNotFound);
  EXPECT_EQ(failure(GuestVirtual{0xfeff'ffff'ffff'ffff}), ErrorKind::kNotFound);
}

TEST_P(Paging, ReachOfFourLevelsEndsAtBit47) {
  const GuestVirtual above{0x0000'8000'0000'0000};
  if (GetParam() == 5) tables.map(above, GuestPhysical{0x5000}, 12);
  EXPECT_EQ(translate(memory, tables.root(), above).ok(), GetParam() == 5);
}

TEST_P(Paging, TableOutsideRamIsDamaged) {
  tables.map(kUser, GuestPhysical{0x5000}, 12);
  memory.write_le(tables.entry(kUser, 39), u64{0x7'0000'0000'0063});
  EXPECT_EQ(failure(kUser), ErrorKind::kDamaged);
}

TEST_P(Paging, LargePageBitAtTopIsDamaged) {
  tables.map(kUser, GuestPhysical{0x5000}, 12);
  const GuestPhysical entry = tables.entry(kUser, 39);
  memory.write_le(entry, memory.read_u64(entry) | vmsieve::testing::kLargePageBit);
  EXPECT_EQ(failure(kUser), ErrorKind::kDamaged);
}

TEST_P(Paging, RangeMergesAdjoiningPages) {
  tables.map_range(kKernel, GuestPhysical{0x60'0000}, 16 * kPageSize, 12);
  EXPECT_THAT(range(kKernel + 0x100, 15 * kPageSize),
              ElementsAre(PhysicalExtent{GuestPhysical{0x60'0100}, 15 * kPageSize}));
}

TEST_P(Paging, RangeKeepsScatteredPagesInVirtualOrder) {
  tables.map(kKernel, GuestPhysical{0x9000}, 12);
  tables.map(kKernel + kPageSize, GuestPhysical{0x5000}, 12);
  tables.map(kKernel + 2 * kPageSize, GuestPhysical{0x6000}, 12);
  EXPECT_THAT(range(kKernel + 0x800, 2 * kPageSize),
              ElementsAre(PhysicalExtent{GuestPhysical{0x9800}, 0x800},
                          PhysicalExtent{GuestPhysical{0x5000}, 0x1800}));
}

// Hazard 18: struct pages of a large folio share one page.
TEST_P(Paging, RangeKeepsSamePageSeveralTimes) {
  for (u64 i = 0; i < 3; ++i) tables.map(kKernel + i * kPageSize, GuestPhysical{0x9000}, 12);
  EXPECT_THAT(range(kKernel, 3 * kPageSize), ElementsAre(PhysicalExtent{GuestPhysical{0x9000}, kPageSize},
                                                         PhysicalExtent{GuestPhysical{0x9000}, kPageSize},
                                                         PhysicalExtent{GuestPhysical{0x9000}, kPageSize}));
}

TEST_P(Paging, RangeCrossesTablesAndPageSizes) {
  const GuestVirtual edge = kKernel + 2 * kMiB;
  tables.map(kKernel, GuestPhysical{0x60'0000}, 21);
  tables.map(edge, GuestPhysical{0x80'0000}, 12);
  EXPECT_THAT(range(kKernel + (2 * kMiB - 0x10), 0x20),
              ElementsAre(PhysicalExtent{GuestPhysical{0x80'0000 - 0x10}, 0x20}));
}

TEST_P(Paging, RangeOfNothingIsEmpty) { EXPECT_TRUE(range(kKernel, 0).empty()); }

TEST_P(Paging, RangeWithHoleIsNotFound) {
  tables.map(kKernel, GuestPhysical{0x9000}, 12);
  const auto found = translate_range(memory, tables.root(), kKernel, kPageSize + 1);
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.error().kind(), ErrorKind::kNotFound);
}

TEST_P(Paging, RangeThatWrapsOrCrossesTheHalvesIsNotFound) {
  EXPECT_EQ(translate_range(memory, tables.root(), GuestVirtual{~u64{0} - 15}, 17).error().kind(),
            ErrorKind::kNotFound);
  EXPECT_EQ(translate_range(memory, tables.root(), GuestVirtual{0x7fff'ffff'f000}, 0x2000).error().kind(),
            ErrorKind::kNotFound);
}

TEST_P(Paging, EndlessRangeIsRefused) {
  const auto found = translate_range(memory, tables.root(), kKernel, kMaxTranslateBytes + 1);
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.error().kind(), ErrorKind::kDamaged);
}

TEST_P(Paging, TableThatPointsToItselfEndsTheWalk) {
  for (u64 i = 0; i < 512; ++i) memory.write_le(tables.root().top + i * 8, tables.root().top.value | 0x63);
  memory.reads = 0;
  EXPECT_TRUE(translate(memory, tables.root(), kKernel).ok());
  EXPECT_EQ(memory.reads, static_cast<int>(GetParam()));
  EXPECT_TRUE(translate_range(memory, tables.root(), kKernel, 64 * kMiB).ok());
}

TEST_P(Paging, TwoMebibytesOfOneLargePageCostOneReadPerLevel) {
  tables.map(kKernel, GuestPhysical{0x60'0000}, 21);
  memory.reads = 0;
  EXPECT_THAT(range(kKernel, 2 * kMiB), ElementsAre(PhysicalExtent{GuestPhysical{0x60'0000}, 2 * kMiB}));
  EXPECT_EQ(memory.reads, static_cast<int>(GetParam()) - 1);
}

TEST_P(Paging, TopLevelTableIsTheNextTable) {
  tables.map(kUser, GuestPhysical{0x5000}, 12);
  const auto found = top_level_table(memory, tables.root(), kUser + kGiB);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(*found, Pfn{0x101}.address());
  EXPECT_FALSE(top_level_table(memory, tables.root(), kKernel).ok());
  EXPECT_FALSE(top_level_table(memory, tables.root(), GuestVirtual{0x8000'0000'0000'0000}).ok());
}

TEST_P(Paging, ReadsVirtualMemoryOverScatteredPages) {
  tables.map(kKernel, GuestPhysical{0x9000}, 12);
  tables.map(kKernel + kPageSize, GuestPhysical{0x5000}, 12);
  memory.write_le(GuestPhysical{0x9ffe}, u16{0x1122});
  memory.write_le(GuestPhysical{0x5000}, u16{0x3344});
  std::byte bytes[4];
  ASSERT_TRUE(read_virtual(memory, tables.root(), kKernel + 0xffe, bytes).ok());
  EXPECT_EQ(load_le<u32>(bytes), 0x33441122u);
}

TEST_P(Paging, ReadingVirtualMemoryOutsideRamFails) {
  tables.map(kKernel, GuestPhysical{0x7'0000'0000}, 12);
  std::byte bytes[4];
  EXPECT_EQ(read_virtual(memory, tables.root(), kKernel, bytes).error().kind(), ErrorKind::kDamaged);
  EXPECT_EQ(read_virtual(memory, tables.root(), kUser, bytes).error().kind(), ErrorKind::kNotFound);
}

TEST_P(Paging, FailureToReadTheGuestIsPassedOn) {
  memory.fail_reads = true;
  EXPECT_EQ(failure(kKernel), ErrorKind::kVanished);
}

}  // namespace
}  // namespace vmsieve
