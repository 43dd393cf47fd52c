// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/btf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_btf.h"

namespace vmsieve {
namespace {

using ::testing::HasSubstr;
using vmsieve::testing::FakeBtf;

class BtfTest : public ::testing::Test {
 protected:
  Btf parsed() const {
    auto parsed = Btf::parse(made.bytes());
    VMSIEVE_CHECK(parsed.ok());
    return *std::move(parsed);
  }
  // struct zone {unsigned int lock; long start; struct list_head lists[3];}
  void make_zone() {
    number = made.integer("unsigned int", 4);
    word = made.integer("long unsigned int", 8);
    list_head = made.structure("list_head", 16, {{"next", word, 0}, {"prev", word, 64}});
    made.structure("zone", 72,
                   {{"lock", number, 0}, {"start", word, 64}, {"lists", made.array(list_head, 3), 128}});
  }

  FakeBtf made;
  u32 number = 0, word = 0, list_head = 0;
};

// ---- sizes and members ----

TEST_F(BtfTest, KnowsSizeOfStructure) {
  make_zone();
  EXPECT_EQ(parsed().size_of("zone"), 72u);
}

TEST_F(BtfTest, KnowsSizeOfUnion) {
  made.union_of("both", 24, {});
  EXPECT_EQ(parsed().size_of("both"), 24u);
}

TEST_F(BtfTest, StructureThatIsNotThereHasNoAnswer) {
  make_zone();
  EXPECT_EQ(parsed().size_of("page"), std::nullopt);
  EXPECT_EQ(parsed().offset_of("page", "lru"), std::nullopt);
  EXPECT_EQ(parsed().size_of(""), std::nullopt);
}

TEST_F(BtfTest, StructureThatIsDefinedTwiceHasNoAnswer) {
  make_zone();
  made.structure("zone", 80, {});
  EXPECT_EQ(parsed().size_of("zone"), std::nullopt);
}

TEST_F(BtfTest, ForwardDeclarationDoesNotHideDefinition) {
  made.forward("zone");
  make_zone();
  EXPECT_EQ(parsed().size_of("zone"), 72u);
}

TEST_F(BtfTest, FindsMember) {
  make_zone();
  const auto member = parsed().member("zone", "start");
  ASSERT_TRUE(member);
  EXPECT_EQ(member->offset, 8u);
  EXPECT_EQ(member->size, 8u);
  EXPECT_EQ(member->elements, 1u);
}

TEST_F(BtfTest, MemberThatIsNotThereHasNoAnswer) {
  make_zone();
  EXPECT_EQ(parsed().offset_of("zone", "end"), std::nullopt);
}

TEST_F(BtfTest, ArrayMemberHasItsWholeSizeAndNumberOfElements) {
  make_zone();
  const auto member = parsed().member("zone", "lists");
  ASSERT_TRUE(member);
  EXPECT_EQ(member->size, 48u);
  EXPECT_EQ(member->elements, 3u);
}

TEST_F(BtfTest, ArrayOfArraysCountsTheOuterOne) {
  const u32 byte = made.integer("char", 1);
  made.structure("table", 64, {{"cells", made.array(made.array(byte, 8), 4), 0}});
  const auto member = parsed().member("table", "cells");
  ASSERT_TRUE(member);
  EXPECT_EQ(member->size, 32u);
  EXPECT_EQ(member->elements, 4u);
}

TEST_F(BtfTest, PointerIsOfEightBytes) {
  made.structure("node", 8, {{"next", made.pointer(0), 0}});
  EXPECT_EQ(parsed().member("node", "next")->size, 8u);
}

TEST_F(BtfTest, EnumerationMemberHasItsSize) {
  made.structure("node", 16,
                 {{"small", made.enumeration("a", {}), 0}, {"large", made.enumeration64("b", {}), 64}});
  EXPECT_EQ(parsed().member("node", "small")->size, 4u);
  EXPECT_EQ(parsed().member("node", "large")->size, 8u);
}

TEST_F(BtfTest, MemberOfUnknownSizeHasSizeZero) {
  made.structure("node", 8, {{"tail", made.forward("other"), 64}});
  EXPECT_EQ(parsed().member("node", "tail")->size, 0u);
}

TEST_F(BtfTest, MembersOfNestedAnonymousStructuresBelongToTheOuterOne) {
  make_zone();
  const u32 inner = made.structure("", 16, {{"lru", list_head, 0}});
  const u32 either = made.union_of("", 24, {{"mapping", word, 0}, {"", inner, 64}});
  made.structure("page", 64, {{"flags", word, 0}, {"", either, 128}});
  EXPECT_EQ(parsed().offset_of("page", "lru"), 24u);
}

TEST_F(BtfTest, MembersOfNamedStructuresDoNotBelongToTheOuterOne) {
  make_zone();
  made.structure("page", 64, {{"links", list_head, 64}});
  EXPECT_EQ(parsed().offset_of("page", "next"), std::nullopt);
}

TEST_F(BtfTest, PathGoesThroughEmbeddedStructures) {
  make_zone();
  made.structure("page", 64, {{"links", list_head, 64}});
  EXPECT_EQ(parsed().offset_of("page", "links.prev"), 16u);
}

TEST_F(BtfTest, PathDoesNotGoThroughPointers) {
  make_zone();
  made.structure("page", 64, {{"links", made.pointer(list_head), 64}});
  EXPECT_EQ(parsed().offset_of("page", "links.prev"), std::nullopt);
}

TEST_F(BtfTest, PathThroughWhatIsNotThereHasNoAnswer) {
  make_zone();
  made.structure("page", 64, {{"", list_head, 0}});
  EXPECT_EQ(parsed().offset_of("page", ""), std::nullopt);
  for (const char* path : {"", ".", "links.", ".lists", "lists..next", "lock.lock.owner"})
    EXPECT_EQ(parsed().offset_of("zone", path), std::nullopt) << path;
}

TEST_F(BtfTest, TypedefsAndQualifiersAreSeenThrough) {
  make_zone();
  u32 type = list_head;
  for (const auto kind :
       {FakeBtf::kTypedef, FakeBtf::kConst, FakeBtf::kVolatile, FakeBtf::kRestrict, FakeBtf::kTypeTag})
    type = made.modifier(kind, kind == FakeBtf::kTypedef ? "list_t" : "", type);
  made.structure("page", 64, {{"links", type, 64}});
  EXPECT_EQ(parsed().offset_of("page", "links.prev"), 16u);
  EXPECT_EQ(parsed().member("page", "links")->size, 16u);
}

// ---- bit fields ----

TEST_F(BtfTest, BitFieldHasNoAnswer) {
  make_zone();
  made.structure_with_bit_fields("flags", 8, {{"on", number, 8, 1}, {"rest", number, 32, 0}});
  EXPECT_EQ(parsed().member("flags", "on"), std::nullopt);
  EXPECT_EQ(parsed().offset_of("flags", "rest"), 4u);
}

TEST_F(BtfTest, MemberThatBeginsInsideAByteHasNoAnswer) {
  make_zone();
  made.structure("flags", 8, {{"odd", number, 3}});
  EXPECT_EQ(parsed().offset_of("flags", "odd"), std::nullopt);
}

TEST_F(BtfTest, BitFieldThatItsIntegerTellsHasNoAnswer) {
  // As it was written before structures had a flag for it: an int of 1 bit.
  const u32 bit = made.add("unsigned int", FakeBtf::kInt << 24, 4, {1});
  made.structure("flags", 8, {{"on", bit, 8}});
  EXPECT_EQ(parsed().offset_of("flags", "on"), std::nullopt);
}

// ---- enumerators ----

TEST_F(BtfTest, FindsEnumerator) {
  made.enumeration("system_states", {{"SYSTEM_BOOTING", 0}, {"SYSTEM_RUNNING", 3}});
  EXPECT_EQ(parsed().enumerator("SYSTEM_RUNNING"), 3);
}

TEST_F(BtfTest, EnumeratorMayBeNegativeOrWide) {
  made.enumeration("small", {{"MINUS", -5}});
  made.enumeration64("large", {{"WIDE", i64{1} << 40}, {"MINUS_WIDE", -(i64{1} << 40)}});
  EXPECT_EQ(parsed().enumerator("MINUS"), -5);
  EXPECT_EQ(parsed().enumerator("WIDE"), i64{1} << 40);
  EXPECT_EQ(parsed().enumerator("MINUS_WIDE"), -(i64{1} << 40));
}

TEST_F(BtfTest, EnumeratorsOfOneNameThatDifferHaveNoAnswer) {
  made.enumeration("a", {{"SAME", 1}, {"OTHER", 2}});
  made.enumeration("b", {{"SAME", 1}, {"OTHER", 3}});
  EXPECT_EQ(parsed().enumerator("SAME"), 1);
  EXPECT_EQ(parsed().enumerator("OTHER"), std::nullopt);
  EXPECT_EQ(parsed().enumerator("NONE"), std::nullopt);
}

// ---- all kinds of types are passed over by their length ----

TEST_F(BtfTest, TypesBehindEveryOtherKindAreFound) {
  const u32 type = made.integer("int", 4);
  made.add("", FakeBtf::kFuncProto << 24 | 2, 0, {0, type, 0, type});
  made.add("f", FakeBtf::kFunc << 24, 2);
  made.add("v", FakeBtf::kVar << 24, type, {1});
  made.add(".data", FakeBtf::kDataSec << 24 | 1, 8, {4, 0, 8});
  made.add("double", FakeBtf::kFloat << 24, 8);
  made.add("tag", FakeBtf::kDeclTag << 24, type, {0});
  made.forward("later");
  make_zone();
  EXPECT_EQ(parsed().size_of("zone"), 72u);
}

// ---- hostile types ----

TEST_F(BtfTest, LoopOfTypedefsEnds) {
  const u32 first = made.next_id();
  made.modifier(FakeBtf::kTypedef, "a", first + 1);
  made.modifier(FakeBtf::kTypedef, "b", first);
  made.structure("loop", 8, {{"member", first, 0}, {"", first, 0}});
  EXPECT_EQ(parsed().member("loop", "member")->size, 0u);
  EXPECT_EQ(parsed().member("loop", "nothing"), std::nullopt);
}

TEST_F(BtfTest, ArrayOfItselfEnds) {
  const u32 array = made.next_id();
  made.array(array, 2);
  made.structure("loop", 8, {{"member", array, 0}});
  EXPECT_EQ(parsed().member("loop", "member")->size, 0u);
}

TEST_F(BtfTest, ArrayWhoseSizeOverflowsHasSizeZero) {
  u32 type = made.integer("long unsigned int", 8);
  for (int i = 0; i < 3; ++i) type = made.array(type, ~u32{0});
  made.structure("huge", 8, {{"member", type, 0}});
  EXPECT_EQ(parsed().member("huge", "member")->size, 0u);
}

TEST_F(BtfTest, StructureThatContainsItselfEnds) {
  const u32 self = made.next_id();
  made.structure("self", 8, {{"", self, 0}});
  EXPECT_EQ(parsed().member("self", "nothing"), std::nullopt);
}

TEST_F(BtfTest, StructureThatContainsItselfManyTimesEnds) {
  // Sixteen steps deep, and at each of them a thousand ways to go on.
  const u32 self = made.next_id();
  made.structure("self", 8, std::vector<FakeBtf::Member>(1000, {"", self, 0}));
  EXPECT_EQ(parsed().member("self", "nothing"), std::nullopt);
}

TEST_F(BtfTest, NameWithoutEndIsReadOnceOnly) {
  // 16 MiB of one name, and two hundred thousand members that all begin in it.
  const u32 name = made.string(std::string(16 * kMiB, 'x'));
  std::vector<u32> words;
  for (u32 i = 0; i < 60'000; ++i) {
    words.push_back(name + i);
    words.push_back(i);
  }
  for (int i = 0; i < 4; ++i) made.add("", FakeBtf::kEnum << 24 | 60'000, 4, words);
  for (u32 i = 0; i < 100'000; ++i) {
    const u32 type[] = {name + i, FakeBtf::kStruct << 24, 8};
    made.add_raw(type);
  }
  EXPECT_EQ(parsed().enumerator("SYSTEM_RUNNING"), std::nullopt);
}

TEST_F(BtfTest, NameOutsideTheStringsIsNone) {
  const u32 type[] = {~u32{0}, FakeBtf::kStruct << 24, 8};
  made.add_raw(type);
  make_zone();
  EXPECT_EQ(parsed().size_of("zone"), 72u);
}

TEST_F(BtfTest, TypeThatIsNotThereHasNoAnswer) {
  made.structure("node", 8, {{"", 77, 0}, {"member", 99, 0}});
  EXPECT_EQ(parsed().member("node", "member")->size, 0u);
  EXPECT_EQ(parsed().member("node", "member.inner"), std::nullopt);
}

// ---- what is no BTF ----

class BadBtf : public ::testing::Test {
 protected:
  BadBtf() {
    FakeBtf made;
    const u32 word = made.integer("long unsigned int", 8);
    made.structure("node", 8, {{"next", word, 0}});
    bytes = made.bytes();
  }
  void put(u64 at, u32 value) {
    for (u64 i = 0; i < 4; ++i) bytes[at + i] = std::byte(value >> (8 * i));
  }
  u32 get(u64 at) const { return load_le<u32>(&bytes[at]); }
  std::string failure() const {
    const auto parsed = Btf::parse(bytes);
    if (parsed.ok()) return "";
    EXPECT_EQ(parsed.error().kind(), ErrorKind::kDamaged);
    return parsed.error().message();
  }

  std::vector<std::byte> bytes;
};

TEST_F(BadBtf, UnchangedItIsGood) { EXPECT_EQ(failure(), ""); }

TEST_F(BadBtf, Empty) {
  bytes.clear();
  EXPECT_EQ(failure(), "BTF of 0 bytes");
}

TEST_F(BadBtf, LargerThanAnyKernelHas) {
  bytes.resize(Btf::kMaxBytes + 1);
  EXPECT_THAT(failure(), HasSubstr("BTF of 67108865 bytes"));
}

TEST_F(BadBtf, OtherMagic) {
  bytes[0] = std::byte{0xeb};
  bytes[1] = std::byte{0x9f};
  EXPECT_EQ(failure(), "no BTF header");
}

TEST_F(BadBtf, OtherVersion) {
  bytes[2] = std::byte{2};
  EXPECT_EQ(failure(), "no BTF header");
}

TEST_F(BadBtf, HeaderThatIsTooShortOrTooLong) {
  for (const u32 length : {23u, static_cast<u32>(bytes.size()) + 1, ~u32{0}}) {
    put(4, length);
    EXPECT_EQ(failure(), "no BTF header") << length;
  }
}

TEST_F(BadBtf, SectionsThatReachBeyondItsEnd) {
  for (const u64 field : {8u, 12u, 16u, 20u}) {
    const u32 good = get(field);
    for (const u32 bad : {static_cast<u32>(bytes.size()), ~u32{0}}) {
      put(field, bad);
      EXPECT_EQ(failure(), "BTF whose sections are not inside it") << field;
    }
    put(field, good);
  }
}

TEST_F(BadBtf, CutAnywhere) {
  const auto whole = bytes;
  for (std::size_t size = 0; size < whole.size(); ++size) {
    bytes.assign(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_NE(failure(), "") << size;
  }
}

TEST_F(BadBtf, StringsWithoutEnd) {
  bytes.back() = std::byte{'x'};
  EXPECT_NE(failure(), "");
}

TEST_F(BadBtf, NoStrings) {
  put(20, 0);
  EXPECT_NE(failure(), "");
}

TEST_F(BadBtf, UnknownKindOfType) {
  put(24 + 4, u32{31} << 24);
  EXPECT_EQ(failure(), "BTF type 1 makes no sense");
}

TEST_F(BadBtf, TypesThatEndInsideAType) {
  const u32 types = get(12);
  for (const u32 less : {1u, 4u, 8u, 12u, 16u, 20u, 23u}) {
    put(12, types - less);
    EXPECT_THAT(failure(), HasSubstr("makes no sense")) << less;
  }
}

TEST(BtfLimits, MoreTypesThanBtfAllowsAreRefused) {
  FakeBtf made;
  const u32 type[] = {0, FakeBtf::kPtr << 24, 0};
  for (u32 i = 0; i < 0x10'0000; ++i) made.add_raw(type);
  EXPECT_FALSE(Btf::parse(made.bytes()).ok());
}

}  // namespace
}  // namespace vmsieve
