// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/kallsyms_search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_kallsyms.h"
#include "support/fake_tables.h"

namespace vmsieve {
namespace {

using ::testing::IsEmpty;
using vmsieve::testing::FakeKallsyms;
using vmsieve::testing::FakeKallsymsOptions;
using vmsieve::testing::FakeMemory;
using vmsieve::testing::FakeTables;
using Offsets = FakeKallsymsOptions::Offsets;

constexpr GuestVirtual kBase{0xffff'ffff'8100'0000};
constexpr u64 kAt = 0x1000;

bool same(const Kallsyms::Place& a, const Kallsyms::Place& b) {
  return a.num_syms == b.num_syms && a.names == b.names && a.token_table == b.token_table &&
         a.token_index == b.token_index && a.offsets == b.offsets && a.relative_base == b.relative_base;
}

// An image of 64 KiB with the tables in the middle.
class FindKallsyms : public ::testing::Test {
 protected:
  FindKallsyms() : image(64 * kKiB, std::byte{0xcc}) { make({}); }

  void make(FakeKallsymsOptions options) {
    std::ranges::fill(image, std::byte{0xcc});
    made.emplace(std::vector<vmsieve::testing::FakeSymbol>{{'D', "linux_banner", kBase}}, kBase + kAt,
                 options);
    std::ranges::copy(made->bytes(), image.begin() + kAt);
  }
  bool found() const {
    const auto places = find_kallsyms_in(image, kBase);
    return std::ranges::any_of(places, [&](const auto& place) { return same(place, made->place()); });
  }
  std::vector<Kallsyms::Place> places() const { return find_kallsyms_in(image, kBase); }
  std::byte& at(GuestVirtual address) { return image[address - kBase]; }

  std::vector<std::byte> image;
  std::optional<FakeKallsyms> made;
};

TEST_F(FindKallsyms, WithOffsetsBehindTheTokens) {
  make({Offsets::kBaseRelative, false});
  EXPECT_TRUE(found());
}

TEST_F(FindKallsyms, WithOffsetsBeforeTheNames) {
  make({Offsets::kBaseRelative, true});
  EXPECT_TRUE(found());
}

TEST_F(FindKallsyms, WithoutABase) {
  make({Offsets::kPlaceRelative, false});
  EXPECT_TRUE(found());
}

TEST_F(FindKallsyms, WithAnyNumberOfSymbols) {
  // Odd and even numbers of offsets and markers are padded differently; the last marker may be that of
  // the last name.
  for (const u64 fillers : {256u, 257u, 511u, 512u, 600u, 767u, 1023u}) {
    make({.offsets_first = false, .fillers = fillers});
    EXPECT_TRUE(found()) << fillers;
    make({.offsets_first = true, .fillers = fillers});
    EXPECT_TRUE(found()) << fillers;
  }
}

TEST_F(FindKallsyms, WithSequencesBetweenMarkersAndTokens) {
  for (const u64 fillers : {256u, 257u, 511u, 512u, 600u, 767u, 1023u, 3000u}) {
    for (const bool offsets_first : {false, true}) {
      make({.offsets_first = offsets_first, .sequences = true, .fillers = fillers});
      EXPECT_TRUE(found()) << fillers;
    }
  }
}

TEST_F(FindKallsyms, WithNamesRightBehindTheirNumber) {
  make({.offsets = Offsets::kPlaceRelative, .names_at_once = true});
  EXPECT_TRUE(found());
}

TEST_F(FindKallsyms, WithTablesAlignedToFour) {
  for (u64 fillers = 256; fillers < 296; ++fillers) {
    make({.offsets = Offsets::kPlaceRelative, .names_at_once = true, .alignment = 4, .fillers = fillers});
    EXPECT_TRUE(found()) << fillers;
  }
}

TEST_F(FindKallsyms, AtTheVeryEndOfTheImage) {
  for (const auto offsets : {Offsets::kBaseRelative, Offsets::kPlaceRelative}) {
    make({offsets, false});
    image.resize(kAt + made->bytes().size());
    EXPECT_TRUE(found());
  }
}

TEST_F(FindKallsyms, AtTheVeryBeginOfTheImage) {
  make({});
  image.erase(image.begin(), image.begin() + kAt);
  EXPECT_EQ(find_kallsyms_in(image, kBase + kAt).size(), 2u);
}

TEST_F(FindKallsyms, GivesOnePlaceForEachOrderOfTables) { EXPECT_EQ(places().size(), 3u); }

TEST_F(FindKallsyms, NothingInNothing) {
  EXPECT_THAT(find_kallsyms_in({}, kBase), IsEmpty());
  const std::vector<std::byte> zeros(kMiB);
  EXPECT_THAT(find_kallsyms_in(zeros, kBase), IsEmpty());
}

TEST_F(FindKallsyms, NotBeforeTheImageEnds) {
  // Cut anywhere in front of the offsets: nothing, or something that fits no longer.
  const u64 offsets = made->place().offsets - kBase;
  for (u64 size = kAt; size < offsets; size += 97) {
    const std::span<const std::byte> cut(image.data(), size);
    EXPECT_THAT(find_kallsyms_in(cut, kBase), IsEmpty()) << size;
  }
}

TEST_F(FindKallsyms, NotWhereTheIndexDoesNotFitTheTokens) {
  at(made->place().token_index + 400) ^= std::byte{1};
  EXPECT_THAT(places(), IsEmpty());
}

TEST_F(FindKallsyms, NotWhereATokenIsMissing) {
  // Digits alone are in many tables.
  for (GuestVirtual a = made->place().token_table; a < made->place().token_table + 8; a = a + 1)
    at(a) = std::byte{'x'};
  EXPECT_THAT(places(), IsEmpty());
}

TEST_F(FindKallsyms, NotWhereMarkersDoNotAscend) {
  const GuestVirtual second{made->place().token_table.value - 4};
  for (u64 i = 0; i < 4; ++i) at(second + i) = std::byte{0xff};
  EXPECT_THAT(places(), IsEmpty());
}

TEST_F(FindKallsyms, NotWhereTheSecondMarkerIsNotThatOfName256) {
  at(GuestVirtual{made->place().token_table.value - 4}) ^= std::byte{1};
  EXPECT_THAT(places(), IsEmpty());
}

TEST_F(FindKallsyms, NotWhereTheNumberOfSymbolsDoesNotFitTheMarkers) {
  at(made->place().num_syms + 1) = std::byte{0x40};
  EXPECT_THAT(places(), IsEmpty());
}

TEST_F(FindKallsyms, NotWithASingleMarker) {
  // 256 symbols or fewer: no kernel.
  make({.fillers = 255});
  EXPECT_THAT(places(), IsEmpty());
}

TEST_F(FindKallsyms, NotWithoutMarkers) {
  for (u64 i = 1; i <= 8; ++i) at(GuestVirtual{made->place().token_table.value - i}) = std::byte{0};
  EXPECT_THAT(places(), IsEmpty());
}

TEST_F(FindKallsyms, NotWithANameOfLengthZero) {
  at(made->place().names + 5) = std::byte{0};
  at(made->place().names) = std::byte{4};
  EXPECT_THAT(places(), IsEmpty());
}

// ---- hostile images ----

TEST_F(FindKallsyms, ImageFullOfTablesGivesAFew) {
  std::vector<std::byte> many;
  for (int i = 0; i < 200; ++i) {
    append_bytes(many, made->bytes());
    many.resize(round_up(many.size(), 8));
  }
  const auto found = find_kallsyms_in(many, kBase);
  EXPECT_GE(found.size(), 1u);
  EXPECT_LE(found.size(), 48u);
}

TEST_F(FindKallsyms, ImageFullOfDigitsEnds) {
  std::vector<std::byte> digits;
  while (digits.size() < 8 * kMiB)
    append_bytes(digits,
                 as_byte_span(std::string_view("0\0001\0002\0003\0004\0005\0006\0007\0008\0009\000", 20)));
  EXPECT_THAT(find_kallsyms_in(digits, kBase), IsEmpty());
}

TEST_F(FindKallsyms, TokenTablesBehindManyPlacesForNamesEnd) {
  // 130 KiB in which every word may be the number of names, then token tables that ask for all of it.
  std::vector<std::byte> words;
  while (words.size() < 256 * 514) append_le<u64>(words, 0x0303'0303'0000'0103);
  const u64 tokens = made->place().token_table - kBase;
  const u64 end = made->place().token_index - kBase + 512;
  for (int i = 0; i < 2000; ++i) {
    append_le<u32>(words, 0);
    append_le<u32>(words, 0x1'2345);
    append_bytes(words, std::span(image).subspan(tokens, end - tokens));
    words.resize(round_up(words.size(), 8));
  }
  EXPECT_THAT(find_kallsyms_in(words, kBase), IsEmpty());
}

// ---- the image ----

class ReadKernelImage : public ::testing::Test {
 protected:
  ReadKernelImage() : memory({{Pfn{0}, 0x4000}}), tables(memory, 4, Pfn{0x10}, Pfn{0x11}) {}

  FakeMemory memory;
  FakeTables tables;
};

TEST_F(ReadKernelImage, IsNotFoundWhereNothingIsMapped) {
  const auto image = read_kernel_image(memory, tables.root());
  ASSERT_FALSE(image.ok());
  EXPECT_EQ(image.error().kind(), ErrorKind::kNotFound);
}

TEST_F(ReadKernelImage, JoinsPagesOfAllSizes) {
  tables.map_range(kBase, GuestPhysical{0x100'0000}, 4 * kMiB, 21);
  tables.map_range(kBase + 4 * kMiB, GuestPhysical{0x180'0000}, 3 * kPageSize, 12);
  memory.write(GuestPhysical{0x180'0000}, as_byte_span("small"));
  const auto image = read_kernel_image(memory, tables.root());
  ASSERT_TRUE(image.ok());
  ASSERT_EQ(image->size(), 1u);
  EXPECT_EQ(image->front().address, kBase);
  EXPECT_EQ(image->front().bytes.size(), 4 * kMiB + 3 * kPageSize);
  EXPECT_EQ(image->front().bytes[4 * kMiB], std::byte{'s'});
}

TEST_F(ReadKernelImage, LeavesOutWhatCannotBeRead) {
  tables.map_range(kBase, GuestPhysical{0x100'0000}, 4 * kPageSize, 12);
  tables.map(kBase + kPageSize, GuestPhysical{0x900'0000}, 12);  // not RAM
  const auto image = read_kernel_image(memory, tables.root());
  ASSERT_TRUE(image.ok());
  ASSERT_EQ(image->size(), 2u);
  EXPECT_EQ((*image)[0].bytes.size(), kPageSize);
  EXPECT_EQ((*image)[1].address, kBase + 2 * kPageSize);
  EXPECT_EQ((*image)[1].bytes.size(), 2 * kPageSize);
}

TEST_F(ReadKernelImage, RefusesAnImageThatIsTooLarge) {
  tables.map_range(kBase, GuestPhysical{0x100'0000}, 6 * kMiB, 21);
  EXPECT_TRUE(read_kernel_image(memory, tables.root(), 6 * kMiB).ok());
  const auto image = read_kernel_image(memory, tables.root(), 5 * kMiB);
  ASSERT_FALSE(image.ok());
  EXPECT_EQ(image.error().kind(), ErrorKind::kUnsupported);
}

TEST_F(ReadKernelImage, SearchFindsTablesInSmallPages) {
  const FakeKallsyms made({{'D', "linux_banner", kBase}}, kBase + kAt);
  tables.map_range(kBase, GuestPhysical{0x100'0000}, 16 * kPageSize, 12);
  memory.write(GuestPhysical{0x100'0000 + kAt}, made.bytes());
  const auto places = find_kallsyms(memory, tables.root());
  ASSERT_TRUE(places.ok());
  EXPECT_TRUE(std::ranges::any_of(*places, [&](const auto& place) { return same(place, made.place()); }));
}

TEST_F(ReadKernelImage, AtOnceFindsTheSamePlaces) {
  const FakeKallsyms made({{'D', "linux_banner", kBase}}, kBase + 20 * kMiB + kAt);
  tables.map_range(kBase, GuestPhysical{0x100'0000}, 32 * kMiB, 21);
  memory.write(GuestPhysical{0x100'0000 + 20 * kMiB + kAt}, made.bytes());
  const auto all = find_kallsyms(memory, tables.root());
  ASSERT_TRUE(all.ok());
  EXPECT_TRUE(std::ranges::equal(find_kallsyms_at_once(memory, tables.root()), *all, same));
  EXPECT_TRUE(std::ranges::any_of(*all, [&](const auto& place) { return same(place, made.place()); }));
}

TEST_F(ReadKernelImage, AtOncePassesOverWhatCannotBeRead) {
  const FakeKallsyms made({{'D', "linux_banner", kBase}}, kBase + kAt);
  tables.map_range(kBase, GuestPhysical{0x100'0000}, 16 * kPageSize, 12);
  memory.write(GuestPhysical{0x100'0000 + kAt}, made.bytes());
  tables.map_range(kBase + 16 * kPageSize, GuestPhysical{0x900'0000}, kPageSize, 12);  // not RAM
  EXPECT_TRUE(std::ranges::any_of(find_kallsyms_at_once(memory, tables.root()),
                                  [&](const auto& place) { return same(place, made.place()); }));
  const FakeTables nothing(memory, 4, Pfn{0x20}, Pfn{0x21});
  EXPECT_THAT(find_kallsyms_at_once(memory, nothing.root()), IsEmpty());
}

TEST_F(ReadKernelImage, AtOnceIsBoundedWhateverTheImageHolds) {
  const FakeKallsyms made({{'D', "linux_banner", kBase}}, kBase);
  for (u64 i = 0; i < 200; ++i)
    tables.map_range(kBase + i * 64 * kKiB, GuestPhysical{0x100'0000}, 32 * kKiB, 12);
  memory.write(GuestPhysical{0x100'0000}, made.bytes());
  EXPECT_LE(find_kallsyms_at_once(memory, tables.root()).size(), 4 * 48u);
}

TEST_F(ReadKernelImage, SearchGivesAFewPlacesOfManyPieces) {
  // Every second page is mapped, each to the same small tables.
  const FakeKallsyms made({{'D', "linux_banner", kBase}}, kBase);
  for (u64 i = 0; i < 200; ++i)
    tables.map_range(kBase + i * 64 * kKiB, GuestPhysical{0x100'0000}, 32 * kKiB, 12);
  memory.write(GuestPhysical{0x100'0000}, made.bytes());
  const auto places = find_kallsyms(memory, tables.root());
  ASSERT_TRUE(places.ok());
  EXPECT_LE(places->size(), 48u);
}

}  // namespace
}  // namespace vmsieve
