// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/zones.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_guest.h"

namespace vmsieve {
namespace {

using ::testing::HasSubstr;
using vmsieve::testing::FakeGuest;

Result<Zones> zones_of(FakeGuest& guest) {
  return read_zones(guest.memory(), guest.tables().root(), *PageLayout::from(guest.kernel().vmcoreinfo()),
                    {});
}

TEST(Zones, ReadsSpansAndCounters) {
  FakeGuest guest;
  guest.memory().write_le(guest.nr_free(1, 10), u64{7});
  const auto zones = zones_of(guest);
  ASSERT_TRUE(zones.ok()) << zones.error().message();
  ASSERT_EQ(zones->groups.size(), 2u);
  EXPECT_EQ(zones->groups[0].name, "node 0 zone 0");
  EXPECT_EQ(zones->groups[1].span, (PfnRange{Pfn{0x1000}, 0x2000}));
  EXPECT_EQ(zones->groups[1].nr_free[10], 7u);
}

TEST(Zones, FindsTheGroupOfAPage) {
  FakeGuest guest;
  const auto zones = zones_of(guest);
  EXPECT_EQ(zones->group_of(Pfn{0}), std::nullopt);
  EXPECT_EQ(zones->group_of(Pfn{1}), 0u);
  EXPECT_EQ(zones->group_of(Pfn{0x0fff}), 0u);
  EXPECT_EQ(zones->group_of(Pfn{0x1000}), 1u);
  EXPECT_EQ(zones->group_of(Pfn{0x3000}), std::nullopt);
}

TEST(Zones, ReadsSeveralNodes) {
  FakeGuest guest(
      {.zones = {{0, 0, {Pfn{1}, 0xfff}}, {1, 1, {Pfn{0x2000}, 0x1000}}, {0, 1, {Pfn{0x1000}, 0x1000}}}});
  const auto zones = zones_of(guest);
  ASSERT_TRUE(zones.ok()) << zones.error().message();
  ASSERT_EQ(zones->groups.size(), 3u);
  EXPECT_EQ(zones->groups[2].name, "node 1 zone 1");
}

TEST(Zones, OverlappingZonesMakeOneGroup) {
  FakeGuest guest(
      {.zones = {{0, 0, {Pfn{1}, 0xfff}}, {0, 1, {Pfn{0x1000}, 0x1800}}, {1, 1, {Pfn{0x2000}, 0x1000}}}});
  guest.memory().write_le(guest.nr_free(1, 3), u64{2});
  guest.memory().write_le(guest.nr_free(2, 3), u64{5});
  const auto zones = zones_of(guest);
  ASSERT_TRUE(zones.ok()) << zones.error().message();
  ASSERT_EQ(zones->groups.size(), 2u);
  EXPECT_EQ(zones->groups[1].name, "node 0 zone 1, node 1 zone 1");
  EXPECT_EQ(zones->groups[1].span, (PfnRange{Pfn{0x1000}, 0x2000}));
  EXPECT_EQ(zones->groups[1].nr_free[3], 7u);
}

TEST(Zones, ZoneInsideAnotherMakesOneGroup) {
  FakeGuest guest({.zones = {{0, 0, {Pfn{1}, 0x2fff}}, {0, 1, {Pfn{0x1000}, 0x100}}}});
  const auto zones = zones_of(guest);
  ASSERT_EQ(zones->groups.size(), 1u);
  EXPECT_EQ(zones->groups[0].span, (PfnRange{Pfn{1}, 0x2fff}));
}

// Each breaks what is expected around spanned_pages of zone 1.
class OtherZoneLayout : public ::testing::TestWithParam<std::pair<u64, u64>> {};
INSTANTIATE_TEST_SUITE_P(Fields, OtherZoneLayout,
                         ::testing::Values(std::pair{80, 0},              // starts before its node
                                           std::pair{80, 0x1001},         // ends behind it
                                           std::pair{80, ~u64{0}},        // wraps
                                           std::pair{88, 0x2001},         // manages more than is present
                                           std::pair{104, 0x2001},        // more present than spanned
                                           std::pair{96, 0x7fff'ffff}));  // spans more than its node

TEST_P(OtherZoneLayout, MakesOneGroupOfTheMachine) {
  FakeGuest guest;
  guest.memory().write_le(guest.nr_free(0, 0), u64{1});
  guest.memory().write_le(guest.nr_free(1, 0), u64{2});
  guest.memory().write_le(guest.zone(1) + GetParam().first, GetParam().second);
  const auto zones = zones_of(guest);
  ASSERT_TRUE(zones.ok()) << zones.error().message();
  ASSERT_EQ(zones->groups.size(), 1u);
  EXPECT_EQ(zones->groups[0].nr_free[0], 3u);
  EXPECT_TRUE(zones->group_of(Pfn{0}));
  EXPECT_TRUE(zones->group_of(Pfn{0xff'ffff}));
}

TEST(Zones, SpannedPagesAtTheEdgeOfTheStructureMakesOneGroup) {
  FakeGuest guest;
  guest.set_key("OFFSET(zone.spanned_pages)", "8");
  guest.memory().write_le(guest.zone(0) + 8, u64{5});
  ASSERT_TRUE(zones_of(guest).ok());
  EXPECT_EQ(zones_of(guest)->groups[0].span.first, Pfn{0});
}

TEST(Zones, SumsSaturate) {
  FakeGuest guest({.zones = {{0, 0, {Pfn{1}, 0x2fff}}, {0, 1, {Pfn{0x1000}, 0x100}}}});
  guest.memory().write_le(guest.nr_free(0, 0), ~u64{0});
  guest.memory().write_le(guest.nr_free(1, 0), u64{2});
  EXPECT_EQ(zones_of(guest)->groups[0].nr_free[0], ~u64{0});
}

TEST(Zones, GroupNamesStayShort) {
  std::vector<vmsieve::testing::FakeZone> many;
  for (u32 node = 0; node < 5; ++node) {
    for (u32 index = 0; index < 2; ++index) many.push_back({node, index, {Pfn{1}, 0x2fff}});
  }
  FakeGuest guest({.zones = many});
  const auto zones = zones_of(guest);
  ASSERT_TRUE(zones.ok()) << zones.error().message();
  EXPECT_THAT(zones->groups[0].name, HasSubstr("node 3 zone 1, ..."));
}

TEST(Zones, EmptyZonesAreNoZones) {
  FakeGuest guest;
  guest.memory().write_le(guest.zone(0) + 96, u64{0});
  EXPECT_EQ(zones_of(guest)->groups.size(), 1u);
  guest.memory().write_le(guest.zone(1) + 96, u64{0});
  EXPECT_EQ(zones_of(guest).error().kind(), ErrorKind::kUnsupported);
}

TEST(Zones, EmptyZoneThatCountsIsDamaged) {
  FakeGuest guest;
  guest.memory().write_le(guest.zone(0) + 96, u64{0});
  guest.memory().write_le(guest.nr_free(0, 4), u64{1});
  const auto zones = zones_of(guest);
  ASSERT_FALSE(zones.ok());
  EXPECT_THAT(zones.error().message(), HasSubstr("node 0 zone 0 counts free blocks but spans no memory"));
}

TEST(Zones, TooManyZonesAreDamaged) {
  FakeGuest guest;
  for (const u32 count : {5U, 17U, ~0U}) {
    guest.memory().write_le(guest.node(0) + 4096, count);
    const auto zones = zones_of(guest);
    ASSERT_FALSE(zones.ok()) << count;
    EXPECT_EQ(zones.error().kind(), ErrorKind::kDamaged);
  }
}

TEST(Zones, NodeOutsideMemoryIsAnError) {
  FakeGuest guest;
  guest.memory().write_le(FakeGuest::kNodeData + 8, u64{0x7'0000'0000'0000});
  EXPECT_FALSE(zones_of(guest).ok());
}

TEST(Zones, KernelWithoutNumaHasOneNode) {
  FakeGuest guest;
  guest.set_key("SYMBOL(node_data)", "");
  guest.set_key("SYMBOL(contig_page_data)", fmt::format("{:x}", guest.direct(guest.node(0)).value));
  const auto zones = zones_of(guest);
  ASSERT_TRUE(zones.ok()) << zones.error().message();
  EXPECT_EQ(zones->groups.size(), 2u);
}

}  // namespace
}  // namespace vmsieve
