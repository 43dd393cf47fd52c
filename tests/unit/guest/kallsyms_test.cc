// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/kallsyms.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_kallsyms.h"
#include "support/fake_tables.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Optional;
using vmsieve::testing::FakeKallsyms;
using vmsieve::testing::FakeKallsymsOptions;
using vmsieve::testing::FakeMemory;
using vmsieve::testing::FakeSymbol;
using vmsieve::testing::FakeTables;
using Offsets = FakeKallsymsOptions::Offsets;

constexpr GuestVirtual kImage{0xffff'ffff'8100'0000};
constexpr GuestVirtual kBanner{kImage.value + 0x1000};
constexpr GuestVirtual kTables{kImage.value + 0x20'0000};

// A kernel image of 4 MiB, mapped by large pages, with a banner and the tables of kallsyms in it.
class KallsymsTest : public ::testing::TestWithParam<FakeKallsymsOptions> {
 protected:
  KallsymsTest() : memory({{Pfn{0}, 0x2000}}), tables(memory, 4, Pfn{0x10}, Pfn{0x11}) {
    tables.map_range(kImage, GuestPhysical{0x100'0000}, 4 * kMiB, 21);
    memory.write(physical(kBanner), as_byte_span("Linux version 6.12.0-fake (made by hand)"));
  }

  static GuestPhysical physical(GuestVirtual address) {
    return GuestPhysical{0x100'0000 + (address - kImage)};
  }

  void make(FakeKallsymsOptions options = {}) {
    made.emplace(symbols, kTables, options);
    memory.write(physical(kTables), made->bytes());
  }
  void add(char type, const std::string& name, u64 offset) {
    symbols.push_back({type, name, kImage + offset});
  }
  Kallsyms read() const {
    auto read = Kallsyms::read_at(memory, tables.root(), made->place());
    VMSIEVE_CHECK(read.ok());
    return *std::move(read);
  }
  std::string failure() const {
    const auto read = Kallsyms::read_at(memory, tables.root(), made->place());
    return read.ok() ? "" : read.error().message();
  }

  FakeMemory memory;
  FakeTables tables;
  std::vector<FakeSymbol> symbols{{'D', "linux_banner", kBanner}};
  std::optional<FakeKallsyms> made;
};

// ---- encodings of offsets, orders of tables ----

TEST_P(KallsymsTest, GivesAddresses) {
  add('T', "_stext", 0);
  add('B', "hugetlb_lock", 0x30'0000);
  make(GetParam());
  const Kallsyms found = read();
  EXPECT_EQ(found.size(), 303u);
  EXPECT_THAT(found.address("_stext"), Optional(kImage));
  EXPECT_THAT(found.address("hugetlb_lock"), Optional(kImage + 0x30'0000));
  EXPECT_THAT(found.address("filler_299"), Optional(kImage + 299 * 16));
}

INSTANTIATE_TEST_SUITE_P(Encodings, KallsymsTest,
                         ::testing::Values(FakeKallsymsOptions{Offsets::kBaseRelative, false},
                                           FakeKallsymsOptions{Offsets::kBaseRelative, true},
                                           FakeKallsymsOptions{Offsets::kAbsolutePerCpu, false},
                                           FakeKallsymsOptions{Offsets::kAbsolutePerCpu, true},
                                           FakeKallsymsOptions{Offsets::kPlaceRelative, false}));

TEST_F(KallsymsTest, IsFoundByItsContent) {
  // The other encodings: kallsyms_search_test.cc; a search takes a second without optimisation.
  add('B', "hugetlb_lock", 0x30'0000);
  make({.offsets = Offsets::kAbsolutePerCpu, .offsets_first = true});
  const auto found = Kallsyms::search(memory, tables.root());
  ASSERT_TRUE(found.ok()) << found.error().message();
  EXPECT_THAT(found->address("hugetlb_lock"), Optional(kImage + 0x30'0000));
}

TEST_F(KallsymsTest, AbsolutePerCpuSymbolsKeepTheirSmallValues) {
  symbols.push_back({'A', "boot_pageset", GuestVirtual{0x2'a000}});
  make({Offsets::kAbsolutePerCpu});
  EXPECT_THAT(read().address("boot_pageset"), Optional(GuestVirtual{0x2'a000}));
}

TEST_F(KallsymsTest, PlaceRelativeOffsetsReachBackwards) {
  add('T', "_stext", 0);  // before the tables
  make({Offsets::kPlaceRelative});
  EXPECT_THAT(read().address("_stext"), Optional(kImage));
}

// ---- where VMCOREINFO says ----

class KallsymsOfVmcoreInfo : public KallsymsTest {
 protected:
  // Without the key `left_out`.
  Result<Kallsyms> read_by_keys(const std::string& left_out = "") const {
    const Kallsyms::Place& p = made->place();
    std::vector<std::pair<std::string, GuestVirtual>> keys{{"num_syms", p.num_syms},
                                                           {"names", p.names},
                                                           {"token_table", p.token_table},
                                                           {"token_index", p.token_index},
                                                           {"offsets", p.offsets}};
    if (p.relative_base) keys.emplace_back("relative_base", *p.relative_base);
    std::string text = "OSRELEASE=6.12.0-fake\nPAGESIZE=4096\n";
    for (const auto& [key, value] : keys) {
      if (key != left_out) text += fmt::format("SYMBOL(kallsyms_{})={:x}\n", key, value.value);
    }
    const auto info = VmcoreInfo::parse(text);
    VMSIEVE_CHECK(info.ok());
    return Kallsyms::read(memory, tables.root(), *info);
  }
};

TEST_F(KallsymsOfVmcoreInfo, IsReadWhereItSays) {
  for (const auto offsets : {Offsets::kBaseRelative, Offsets::kAbsolutePerCpu, Offsets::kPlaceRelative}) {
    make({offsets});
    const auto found = read_by_keys();
    ASSERT_TRUE(found.ok()) << found.error().message();
    EXPECT_THAT(found->address("linux_banner"), Optional(kBanner));
  }
}

TEST_F(KallsymsOfVmcoreInfo, IsNotFoundWithoutOneOfTheKeys) {
  make();
  for (const char* key : {"num_syms", "names", "token_table", "token_index", "offsets"}) {
    const auto found = read_by_keys(key);
    ASSERT_FALSE(found.ok()) << key;
    EXPECT_EQ(found.error().kind(), ErrorKind::kNotFound);
  }
}

TEST_F(KallsymsOfVmcoreInfo, OffsetsOfOneEncodingAreNotReadAsAnother) {
  // Offsets relative to a base whose key is missing are no offsets relative to their place.
  make({Offsets::kBaseRelative});
  const auto found = read_by_keys("relative_base");
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.error().kind(), ErrorKind::kDamaged);
}

// ---- names ----

TEST_F(KallsymsTest, AnswersInTheOrderOfTheQuestions) {
  add('T', "a", 0x10);
  add('t', "bb", 0x20);
  make();
  constexpr std::string_view names[] = {"bb", "none", "a", "bb", ""};
  EXPECT_THAT(read().addresses(names),
              ElementsAre(Optional(kImage + 0x20), std::nullopt, Optional(kImage + 0x10),
                          Optional(kImage + 0x20), std::nullopt));
}

TEST_F(KallsymsTest, NoQuestionNoAnswer) {
  make();
  EXPECT_TRUE(read().addresses({}).empty());
}

TEST_F(KallsymsTest, NameOfTwoLengthBytes) {
  const std::string name(300, 'Z');
  add('T', name, 0x40);
  add('T', "behind", 0x80);
  make();
  const Kallsyms found = read();
  EXPECT_THAT(found.address(name), Optional(kImage + 0x40));
  EXPECT_THAT(found.address("behind"), Optional(kImage + 0x80));
}

TEST_F(KallsymsTest, NameLongerThanAnyIsNotThere) {
  make();
  EXPECT_EQ(read().address(std::string(Kallsyms::kMaxNameBytes + 1, 'x')), std::nullopt);
}

TEST_F(KallsymsTest, NameIsComparedWhole) {
  add('T', "zone_lock", 0x10);
  make();
  EXPECT_EQ(read().address("zone"), std::nullopt);
  EXPECT_EQ(read().address("one_lock"), std::nullopt);
  EXPECT_EQ(read().address("zone_lock2"), std::nullopt);
}

TEST_F(KallsymsTest, GlobalSymbolCountsBeforeLocalOnes) {
  add('t', "hstates", 0x10);
  add('D', "hstates", 0x20);
  add('d', "hstates", 0x30);
  make();
  EXPECT_THAT(read().address("hstates"), Optional(kImage + 0x20));
}

TEST_F(KallsymsTest, TwoGlobalSymbolsOfOneNameHaveNoAnswer) {
  add('D', "hstates", 0x20);
  add('B', "hstates", 0x30);
  add('d', "hstates", 0x40);
  make();
  EXPECT_EQ(read().address("hstates"), std::nullopt);
}

TEST_F(KallsymsTest, TwoLocalSymbolsOfOneNameHaveNoAnswer) {
  add('d', "cache", 0x20);
  add('b', "cache", 0x30);
  make();
  EXPECT_EQ(read().address("cache"), std::nullopt);
}

TEST_F(KallsymsTest, OneAddressNamedTwiceIsNotAmbiguous) {
  add('d', "cache", 0x20);
  add('d', "cache", 0x20);
  make();
  EXPECT_THAT(read().address("cache"), Optional(kImage + 0x20));
}

// ---- damaged tables ----

class BadKallsyms : public KallsymsTest {
 protected:
  BadKallsyms() { make(); }
  template <std::unsigned_integral T>
  void put(GuestVirtual address, T value) {
    memory.write_le(physical(address), value);
  }
};

TEST_F(BadKallsyms, UnchangedItIsGood) { EXPECT_EQ(failure(), ""); }

TEST_F(BadKallsyms, ImpossibleNumberOfSymbols) {
  for (const u32 count : {0u, (1u << 22) + 1, ~0u}) {
    put(made->place().num_syms, count);
    EXPECT_THAT(failure(), HasSubstr("symbols, which cannot be right")) << count;
  }
}

TEST_F(BadKallsyms, MoreSymbolsThanNames) {
  put(made->place().num_syms, u32{100'000});
  EXPECT_THAT(failure(), HasSubstr("name 301 of 100000 cannot be right"));
}

TEST_F(BadKallsyms, NameOfLengthZero) {
  put(made->place().names, u8{0});
  EXPECT_THAT(failure(), HasSubstr("name 0 of 301 cannot be right"));
}

TEST_F(BadKallsyms, NameThatIsTooLong) {
  put(made->place().names, u16{0xffff});
  EXPECT_THAT(failure(), HasSubstr("name 0 of 301 cannot be right"));
}

TEST_F(BadKallsyms, NamesThatEndInsideALength) {
  Kallsyms::Place place = made->place();
  put(place.names, u8{0x80});
  place.token_table = place.names + 1;
  EXPECT_FALSE(Kallsyms::read_at(memory, tables.root(), place).ok());
}

TEST_F(BadKallsyms, NamesThatReachIntoTheTokens) {
  Kallsyms::Place place = made->place();
  place.token_table = place.names + 10;
  EXPECT_FALSE(Kallsyms::read_at(memory, tables.root(), place).ok());
}

TEST_F(BadKallsyms, TokensBeforeTheNames) {
  Kallsyms::Place place = made->place();
  std::swap(place.token_table, place.names);
  EXPECT_FALSE(Kallsyms::read_at(memory, tables.root(), place).ok());
}

TEST_F(BadKallsyms, TokensTooFarBehindTheNamesAreRefusedBeforeTheNamesAreRead) {
  Kallsyms::Place place = made->place();
  place.names = GuestVirtual{place.token_table.value - 900 * kMiB};
  const auto read = Kallsyms::read_at(memory, tables.root(), place);
  ASSERT_FALSE(read.ok());
  EXPECT_THAT(read.error().message(), HasSubstr("do not stand behind the names"));
}

TEST_F(BadKallsyms, TokenOutsideItsTable) {
  put(made->place().token_index + 7 * 2, u16{0xffff});
  EXPECT_EQ(failure(), "kallsyms: token 7 is at 65535");
}

TEST_F(BadKallsyms, TokenWithoutEnd) {
  Kallsyms::Place place = made->place();
  place.token_table = kTables + 0x10'0000;
  memory.write(physical(place.token_table), std::vector<std::byte>(1024, std::byte{'x'}));
  const auto read = Kallsyms::read_at(memory, tables.root(), place);
  ASSERT_FALSE(read.ok());
  EXPECT_EQ(read.error().message(), "kallsyms: token 0 has no end");
}

TEST_F(BadKallsyms, TokensThatMakeOtherNames) {
  for (u64 i = 0; i < 256; ++i) put(made->place().token_index + i * 2, u16{0});
  EXPECT_THAT(failure(), HasSubstr("its linux_banner is not where the kernel's banner is"));
}

TEST_F(BadKallsyms, BannerThatIsElsewhere) {
  memory.write(physical(kBanner), as_byte_span("Minix version 1"));
  EXPECT_THAT(failure(), HasSubstr("its linux_banner is not where the kernel's banner is"));
}

TEST_F(BadKallsyms, OtherRelativeBase) {
  put(*made->place().relative_base, FakeKallsyms::kRelativeBase + 16);
  EXPECT_THAT(failure(), HasSubstr("its linux_banner is not where the kernel's banner is"));
}

TEST_F(BadKallsyms, TablesThatAreNotMapped) {
  const Kallsyms::Place good = made->place();
  const GuestVirtual nowhere{kImage.value + 64 * kMiB};
  std::vector<Kallsyms::Place> places(6, good);
  places[0].num_syms = nowhere;
  places[1].names = GuestVirtual{kImage.value - kMiB};
  places[2].token_table = nowhere;
  places[3].token_index = nowhere;
  places[4].offsets = nowhere;
  places[5].relative_base = nowhere;
  for (std::size_t i = 0; i < places.size(); ++i)
    EXPECT_FALSE(Kallsyms::read_at(memory, tables.root(), places[i]).ok()) << i;
}

TEST_F(BadKallsyms, BannerThatIsNotMapped) {
  symbols = {{'D', "linux_banner", kImage + 64 * kMiB}};
  make();
  EXPECT_THAT(failure(), HasSubstr("its linux_banner is not where the kernel's banner is"));
}

TEST_F(BadKallsyms, SearchOfAnImageWithoutTablesFindsNone) {
  const std::vector<std::byte> nothing(made->bytes().size());
  memory.write(physical(kTables), nothing);
  const auto found = Kallsyms::search(memory, tables.root());
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(found.error().message(), "the kernel image holds no kallsyms");
}

TEST_F(BadKallsyms, SearchBelievesNoTablesWithoutTheBanner) {
  memory.write(physical(kBanner), as_byte_span("Minix version 1"));
  const auto found = Kallsyms::search(memory, tables.root());
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.error().kind(), ErrorKind::kNotFound);
  EXPECT_THAT(found.error().message(), HasSubstr("linux_banner"));
}

TEST_F(BadKallsyms, SearchWithoutAKernelImageFindsNone) {
  FakeMemory empty({{Pfn{0}, 0x100}});
  const FakeTables none(empty, 4, Pfn{0x10}, Pfn{0x11});
  const auto found = Kallsyms::search(empty, none.root());
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.error().kind(), ErrorKind::kNotFound);
}

TEST_F(BadKallsyms, SearchPassesOverACopyThatDoesNotFit) {
  // The same bytes a MiB further down: offsets relative to their place are wrong there.
  make({Offsets::kPlaceRelative});
  memory.write(physical(kImage + 0x10'0000), made->bytes());
  const auto found = Kallsyms::search(memory, tables.root());
  ASSERT_TRUE(found.ok()) << found.error().message();
  EXPECT_THAT(found->address("filler_7"), Optional(kImage + 7 * 16));
}

}  // namespace
}  // namespace vmsieve
