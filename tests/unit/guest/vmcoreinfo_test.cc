// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/vmcoreinfo.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmsieve {
namespace {

using ::testing::HasSubstr;

VmcoreInfo parse(std::string_view lines) {
  auto info = VmcoreInfo::parse("OSRELEASE=6.1.0\n" + std::string(lines));
  EXPECT_TRUE(info.ok());
  return *std::move(info);
}

TEST(VmcoreInfo, ReadsEveryKindOfLine) {
  const VmcoreInfo info = parse(
      "PAGESIZE=4096\nSYMBOL(_stext)=ffffffffae800000\nNUMBER(PG_lru)=5\nSIZE(page)=64\n"
      "OFFSET(page._mapcount)=48\nLENGTH(zone.free_area)=11\n");
  EXPECT_EQ(info.release(), "6.1.0");
  EXPECT_EQ(info.string("PAGESIZE"), "4096");
  EXPECT_EQ(info.symbol("_stext"), GuestVirtual{0xffffffffae800000});
  EXPECT_EQ(info.number("PG_lru"), 5);
  EXPECT_EQ(info.size("page"), 64u);
  EXPECT_EQ(info.offset("page._mapcount"), 48u);
  EXPECT_EQ(info.length("zone.free_area"), 11u);
}

TEST(VmcoreInfo, ReadsNumbersAsSigned) {
  EXPECT_EQ(parse("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129\n").number("PAGE_BUDDY_MAPCOUNT_VALUE"), -129);
}

TEST(VmcoreInfo, ReadsNumbersPrintedByHandAsHex) {
  const VmcoreInfo info = parse("NUMBER(VA_BITS)=0x30\nNUMBER(VMALLOC_START)=0xffffc90000000000\n");
  EXPECT_EQ(info.number("VA_BITS"), 48);
  EXPECT_EQ(static_cast<u64>(info.number("VMALLOC_START").value_or(0)), 0xffffc90000000000u);
}

TEST(VmcoreInfo, AbsentKeyIsNoValue) {
  const VmcoreInfo info = parse("");
  EXPECT_FALSE(info.string("PAGESIZE"));
  EXPECT_FALSE(info.symbol("_stext"));
  EXPECT_FALSE(info.number("PG_lru"));
  EXPECT_FALSE(info.size("page"));
  EXPECT_FALSE(info.offset("page.flags"));
  EXPECT_FALSE(info.length("mem_section"));
}

TEST(VmcoreInfo, KindOfKeyMatters) { EXPECT_FALSE(parse("SIZE(page)=64\n").offset("page")); }

TEST(VmcoreInfo, MalformedNumberIsNoValue) {
  const VmcoreInfo info = parse(
      "SIZE(a)=-1\nSIZE(b)=12x\nSIZE(c)=\nSIZE(d)=99999999999999999999\nSIZE(e)= 1\n"
      "SYMBOL(a)=0xffff\nSYMBOL(b)=fffffffffffffffff\nNUMBER(a)=9223372036854775808\nNUMBER(b)=0x\n"
      "NUMBER(c)=0x1ffffffffffffffff\n");
  for (const char* name : {"a", "b", "c", "d", "e"}) {
    EXPECT_FALSE(info.size(name)) << name;
    EXPECT_FALSE(info.symbol(name)) << name;
    EXPECT_FALSE(info.number(name)) << name;
  }
}

TEST(VmcoreInfo, IgnoresLastLineWithoutNewline) {
  const VmcoreInfo info = parse("SIZE(page)=64\nSIZE(zone)=15");
  EXPECT_EQ(info.size("page"), 64u);
  EXPECT_FALSE(info.size("zone"));
  EXPECT_THAT(info.text(), HasSubstr("SIZE(zone)=15"));
}

TEST(VmcoreInfo, EndsAtFirstNul) {
  const VmcoreInfo info = parse(std::string_view("SIZE(page)=64\n\0SIZE(zone)=1\n", 28));
  EXPECT_EQ(info.size("page"), 64u);
  EXPECT_FALSE(info.size("zone"));
}

TEST(VmcoreInfo, PassesOverLinesThatAreNoPair) {
  EXPECT_EQ(parse("\nnonsense\n=5\nSIZE(page)=64\n").size("page"), 64u);
}

TEST(VmcoreInfo, SameLineTwiceIsFine) {
  EXPECT_EQ(parse("SIZE(page)=64\nSIZE(page)=64\n").size("page"), 64u);
}

TEST(VmcoreInfo, RefusesKeyWithTwoValues) {
  const auto info = VmcoreInfo::parse("OSRELEASE=6.1.0\nSIZE(page)=64\nSIZE(page)=56\n");
  ASSERT_FALSE(info.ok());
  EXPECT_EQ(info.error().kind(), ErrorKind::kDamaged);
  EXPECT_THAT(info.error().message(), HasSubstr("SIZE(page)"));
}

TEST(VmcoreInfo, DoesNotRepeatUnprintableKeys) {
  const auto info = VmcoreInfo::parse("OSRELEASE=6.1.0\n\x1b[2J=64\n\x1b[2J=56\n");
  ASSERT_FALSE(info.ok());
  EXPECT_THAT(info.error().message(), HasSubstr("a key"));
}

TEST(VmcoreInfo, NeedsRelease) {
  EXPECT_FALSE(VmcoreInfo::parse("SIZE(page)=64\n").ok());
  EXPECT_FALSE(VmcoreInfo::parse("").ok());
  EXPECT_FALSE(VmcoreInfo::parse("OSRELEASE=6.1.0").ok());  // may be cut
}

TEST(VmcoreInfo, RefusesReleaseThatCannotBeShown) {
  EXPECT_FALSE(VmcoreInfo::parse("OSRELEASE=\n").ok());
  EXPECT_FALSE(VmcoreInfo::parse("OSRELEASE=6.1\x1b[2J\n").ok());
  EXPECT_FALSE(VmcoreInfo::parse("OSRELEASE=6.1 0\n").ok());
  EXPECT_FALSE(VmcoreInfo::parse("OSRELEASE=" + std::string(65, 'x') + "\n").ok());
}

TEST(VmcoreInfo, RefusesEndlessText) {
  EXPECT_FALSE(VmcoreInfo::parse("OSRELEASE=6.1\n" + std::string(VmcoreInfo::kMaxTextBytes, 'x')).ok());
}

}  // namespace
}  // namespace vmsieve
