// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/arm64_paging.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_tables.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using vmsieve::testing::FakeMemory;
using vmsieve::testing::FakeTables;

constexpr Pfn kTop{0x10};
constexpr Pfn kNext{0x20};

u64 top_of_range(const Arm64Translation& t) { return ~u64{0} << t.va_bits; }

class Arm64Paging : public ::testing::TestWithParam<Arm64Translation> {
 protected:
  Arm64Paging() : memory({{Pfn{0}, 0x1000}}), tables(memory, GetParam(), kTop, kNext) {}

  u64 page_bytes() const { return u64{1} << GetParam().page_shift; }
  // The shortest block: what an entry one level above the lowest maps.
  u32 block_shift() const { return 2 * GetParam().page_shift - 3; }

  FakeMemory memory;
  FakeTables tables;
};

INSTANTIATE_TEST_SUITE_P(Translations, Arm64Paging,
                         ::testing::Values(Arm64Translation{12, 48, false}, Arm64Translation{12, 39, false},
                                           Arm64Translation{12, 52, true}, Arm64Translation{14, 36, false},
                                           Arm64Translation{14, 47, false}, Arm64Translation{14, 48, false},
                                           Arm64Translation{14, 52, true}, Arm64Translation{16, 42, false},
                                           Arm64Translation{16, 48, false}, Arm64Translation{16, 52, false}),
                         [](const auto& parameter) {
                           return fmt::format("Granule{}Bits{}", parameter.param.page_shift,
                                              parameter.param.va_bits);
                         });

TEST_P(Arm64Paging, TranslatesPagesAtBothEndsOfTheRange) {
  const u64 first = top_of_range(GetParam());
  const u64 last = ~u64{0} - page_bytes() + 1;
  tables.map(GuestVirtual{first}, GuestPhysical{0x30'0000}, GetParam().page_shift);
  tables.map(GuestVirtual{last}, GuestPhysical{0x40'0000}, GetParam().page_shift);
  EXPECT_EQ(*translate(memory, tables.root(), GuestVirtual{first + 0x123}), GuestPhysical{0x30'0123});
  EXPECT_EQ(*translate(memory, tables.root(), GuestVirtual{~u64{0}}),
            GuestPhysical{0x40'0000 + page_bytes() - 1});
}

TEST_P(Arm64Paging, TranslatesBlocks) {
  const u64 address = top_of_range(GetParam());
  const u64 block = u64{5} << block_shift();
  tables.map(GuestVirtual{address}, GuestPhysical{block}, block_shift());
  EXPECT_EQ(*translate(memory, tables.root(), GuestVirtual{address + page_bytes() + 1}),
            GuestPhysical{block + page_bytes() + 1});
}

TEST_P(Arm64Paging, RefusesWhatIsNotInTheKernelsHalf) {
  for (const u64 address : {u64{0}, u64{0x40'1000}, top_of_range(GetParam()) - 1, ~u64{0} >> 1}) {
    const auto result = translate(memory, tables.root(), GuestVirtual{address});
    ASSERT_FALSE(result.ok()) << std::hex << address;
    EXPECT_EQ(result.error().kind(), ErrorKind::kNotFound);
    EXPECT_THAT(result.error().message(), HasSubstr("canonical"));
  }
}

TEST_P(Arm64Paging, SaysWhatIsNotMapped) {
  const auto result = translate(memory, tables.root(), GuestVirtual{top_of_range(GetParam())});
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().kind(), ErrorKind::kNotFound);
}

TEST_P(Arm64Paging, RefusesBlockAtTheLowestLevel) {
  const GuestVirtual address{top_of_range(GetParam())};
  tables.map(address, GuestPhysical{0x30'0000}, GetParam().page_shift);
  const GuestPhysical entry = tables.entry(address, GetParam().page_shift);
  memory.write_le(entry, memory.read_u64(entry) & ~u64{2});
  EXPECT_EQ(translate(memory, tables.root(), address).error().kind(), ErrorKind::kDamaged);
}

TEST_P(Arm64Paging, RangeCrossesTables) {
  // Two pages on either side of a table's end.
  const u64 boundary = top_of_range(GetParam()) + (u64{1} << block_shift());
  for (u64 i = 0; i < 2; ++i) {
    tables.map(GuestVirtual{boundary - page_bytes() + i * page_bytes()},
               GuestPhysical{0x80'0000 - i * 0x20'0000}, GetParam().page_shift);
  }
  const auto extents = translate_range(memory, tables.root(), GuestVirtual{boundary - 0x100}, 0x300);
  ASSERT_TRUE(extents.ok()) << extents.error().message();
  EXPECT_THAT(*extents, ElementsAre(PhysicalExtent{GuestPhysical{0x80'0000 + page_bytes() - 0x100}, 0x100},
                                    PhysicalExtent{GuestPhysical{0x60'0000}, 0x200}));
}

// A table of 64 KiB or 16 KiB has more entries than one read brings.
TEST_P(Arm64Paging, LongRangeReadsAllOfATable) {
  const u64 entries = page_bytes() / 8;
  const u64 first = top_of_range(GetParam());
  for (u64 i = 0; i < entries; i += 1) {
    tables.map(GuestVirtual{first + i * page_bytes()}, GuestPhysical{0x40'0000}, GetParam().page_shift);
  }
  const auto extents = translate_range(memory, tables.root(), GuestVirtual{first}, entries * page_bytes());
  ASSERT_TRUE(extents.ok()) << extents.error().message();
  EXPECT_EQ(extents->size(), entries);
}

TEST(Arm64PagingAddresses, HighBitsAreWhereTheGranuleHasThem) {
  FakeMemory memory({{Pfn{0}, 0x1000}});
  const GuestPhysical far{0x000a'5000'1234'0000};
  for (const Arm64Translation t :
       {Arm64Translation{12, 52, true}, Arm64Translation{14, 52, true}, Arm64Translation{16, 52, false}}) {
    FakeTables tables(memory, t, kTop, kNext);
    const GuestVirtual address{top_of_range(t)};
    tables.map(address, far, t.page_shift);
    EXPECT_EQ(*translate(memory, tables.root(), address), far) << t.page_shift;
    memory = FakeMemory({{Pfn{0}, 0x1000}});
  }
}

TEST(Arm64PagingAddresses, ShareabilityIsNoAddressWithoutLpa2) {
  FakeMemory memory({{Pfn{0}, 0x1000}});
  FakeTables tables(memory, Arm64Translation{}, kTop, kNext);
  const GuestVirtual address{0xffff'0000'0000'0000};
  tables.map(address, GuestPhysical{0x5000}, 12);
  ASSERT_EQ(memory.read_u64(tables.entry(address, 12)) & 0x300, 0x300u);
  EXPECT_EQ(*translate(memory, tables.root(), address), GuestPhysical{0x5000});
}

TEST(Arm64PagingAddresses, BlocksLongerThanTheFormatHasAreReserved) {
  FakeMemory memory({{Pfn{0}, 0x1000}});
  const GuestVirtual address{0xffff'8000'0000'0000};
  memory.write_le(kTop.address() + 256 * 8, u64{0x0060'0000'0000'0401});  // 512 GiB at once
  EXPECT_EQ(translate(memory, arm64_page_tables(kTop.address(), {}), address).error().kind(),
            ErrorKind::kDamaged);
  memory.write_le(kTop.address(), u64{0x0000'1000'0000'0003});  // a table outside of RAM
  EXPECT_EQ(translate(memory, arm64_page_tables(kTop.address(), {}), GuestVirtual{0xffff'0000'0000'0000})
                .error()
                .kind(),
            ErrorKind::kDamaged);
}

TEST(Arm64Translation, OnlyWhatExistsIsPossible) {
  EXPECT_TRUE((Arm64Translation{12, 48, false}).possible());
  EXPECT_TRUE((Arm64Translation{16, 52, false}).possible());
  EXPECT_TRUE((Arm64Translation{12, 52, true}).possible());
  for (const Arm64Translation t :
       {Arm64Translation{0, 48, false}, Arm64Translation{13, 48, false}, Arm64Translation{12, 49, false},
        Arm64Translation{14, 52, false}, Arm64Translation{16, 48, true}, Arm64Translation{16, 53, false},
        Arm64Translation{12, 24, false}, Arm64Translation{12, 0, false}}) {
    EXPECT_FALSE(t.possible()) << t.page_shift << " " << t.va_bits;
  }
}

}  // namespace
}  // namespace vmsieve
