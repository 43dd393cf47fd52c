// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/page_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_guest.h"

namespace vmsieve {
namespace {

using ::testing::HasSubstr;
using vmsieve::testing::arm64_options;
using vmsieve::testing::FakeGuest;

Result<PageLayout> layout_of(const FakeGuest& guest) {
  return PageLayout::from(*VmcoreInfo::parse(guest.text()));
}

// One guest for all: building its memory is what takes time.
FakeGuest& shared_guest() {
  static FakeGuest guest;
  return guest;
}

Result<PageLayout> layout_with(const std::string& key, const std::string& value) {
  FakeGuest& guest = shared_guest();
  const std::string old(VmcoreInfo::parse(guest.text())->string(key).value_or(""));
  guest.set_key(key, value);
  auto layout = layout_of(guest);
  guest.set_key(key, old);
  return layout;
}

TEST(PageLayout, ReadsWhatTheKernelSays) {
  const auto layout = layout_of(shared_guest());
  ASSERT_TRUE(layout.ok()) << layout.error().message();
  EXPECT_EQ(layout->page_bytes, 64u);
  EXPECT_EQ(layout->buddy_type, 0xf000'0000u);
  EXPECT_EQ(layout->nr_free_offset, 64u);
  EXPECT_EQ(layout->pages_per_section(), 4096u);
  EXPECT_EQ(layout->nodes, 64u);
}

TEST(PageLayout, ReadsBuddyValueOfOlderKernels) {
  EXPECT_EQ(layout_with("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", "-129")->buddy_type, 0xffff'ff7fu);
}

TEST(PageLayout, SectionsAreThoseOfX86WhenNotSaid) {
  EXPECT_EQ(layout_with("NUMBER(SECTION_SIZE_BITS)", "")->section_shift, 27u);
}

TEST(PageLayout, KernelWithoutNumaHasOneNode) {
  FakeGuest guest;
  guest.set_key("SYMBOL(node_data)", "");
  guest.set_key("SYMBOL(contig_page_data)", "ffffffff82000000");
  const auto layout = layout_of(guest);
  ASSERT_TRUE(layout.ok()) << layout.error().message();
  EXPECT_EQ(layout->nodes, 0u);
  EXPECT_EQ(layout->node_data, GuestVirtual{0xffffffff82000000});
}

TEST(PageLayout, KernelThatDoesNotSayWhereItsNodesAreHasNone) {
  FakeGuest guest(arm64_options());
  const auto layout = layout_of(guest);
  ASSERT_TRUE(layout.ok()) << layout.error().message();
  EXPECT_FALSE(layout->node_data);
  for (const std::string name : {"pglist_data.node_id", "page.lru"}) {
    FakeGuest incomplete(arm64_options());
    incomplete.set_key("OFFSET(" + name + ")", "");
    EXPECT_THAT(layout_of(incomplete).error().message(), HasSubstr(name));
  }
}

TEST(PageLayout, KnowsTheKernelsPageSize) {
  FakeGuest guest(arm64_options({.page_shift = 14, .va_bits = 48, .lpa2 = false}));
  const auto layout = layout_of(guest);
  ASSERT_TRUE(layout.ok()) << layout.error().message();
  EXPECT_EQ(layout->frames_per_page(), 4u);
  EXPECT_EQ(layout->pages_per_section(), 1024u);
  EXPECT_EQ(layout->frames_per_section(), 4096u);
  guest.set_key("NUMBER(SECTION_SIZE_BITS)", "");
  EXPECT_EQ(layout_of(guest)->section_shift, 30u);
}

TEST(PageLayout, RefusesAnotherPageSize) {
  EXPECT_EQ(layout_with("PAGESIZE", "8192").error().kind(), ErrorKind::kUnsupported);
}

class NeededKey : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(
    Keys, NeededKey,
    ::testing::Values("SYMBOL(mem_section)", "LENGTH(mem_section)", "SIZE(mem_section)",
                      "OFFSET(mem_section.section_mem_map)", "SIZE(page)", "SIZE(pglist_data)", "SIZE(zone)",
                      "SIZE(free_area)", "SIZE(list_head)", "OFFSET(page.flags)", "OFFSET(page._refcount)",
                      "OFFSET(page._mapcount)", "OFFSET(page.private)", "OFFSET(pglist_data.node_zones)",
                      "OFFSET(pglist_data.nr_zones)", "OFFSET(pglist_data.node_start_pfn)",
                      "OFFSET(pglist_data.node_spanned_pages)", "OFFSET(zone.free_area)",
                      "OFFSET(zone.spanned_pages)", "LENGTH(zone.free_area)", "LENGTH(free_area.free_list)",
                      "NUMBER(PG_lru)", "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", "LENGTH(node_data)",
                      "PAGESIZE"));

TEST_P(NeededKey, IsNamedWhenAbsent) {
  const auto layout = layout_with(GetParam(), "");
  ASSERT_FALSE(layout.ok());
  EXPECT_EQ(layout.error().kind(), ErrorKind::kUnsupported);
  const std::string key = GetParam();
  const std::size_t open = key.find('(');
  const auto name = open == std::string::npos ? key : key.substr(open + 1, key.size() - open - 2);
  EXPECT_THAT(layout.error().message(), HasSubstr(name));
}

class BadValue : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};

INSTANTIATE_TEST_SUITE_P(
    Keys, BadValue,
    ::testing::Values(
        std::pair{"SIZE(page)", "0"}, std::pair{"SIZE(page)", "24"}, std::pair{"SIZE(page)", "60"},
        std::pair{"SIZE(page)", "264"}, std::pair{"SIZE(page)", "18446744073709551608"},
        std::pair{"OFFSET(page.flags)", "4"}, std::pair{"OFFSET(page.flags)", "64"},
        std::pair{"OFFSET(page._refcount)", "50"}, std::pair{"OFFSET(page._refcount)", "64"},
        std::pair{"OFFSET(page._mapcount)", "18446744073709551612"}, std::pair{"OFFSET(page.private)", "60"},
        std::pair{"NUMBER(PG_lru)", "64"}, std::pair{"NUMBER(PG_lru)", "-1"},
        std::pair{"NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", "-1"},
        std::pair{"NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", "0"}, std::pair{"LENGTH(zone.free_area)", "0"},
        std::pair{"LENGTH(zone.free_area)", "17"}, std::pair{"LENGTH(zone.free_area)", "14"},
        std::pair{"NUMBER(SECTION_SIZE_BITS)", "23"}, std::pair{"NUMBER(SECTION_SIZE_BITS)", "64"},
        std::pair{"NUMBER(SECTION_SIZE_BITS)", "-1"}, std::pair{"SIZE(mem_section)", "8"},
        std::pair{"SIZE(mem_section)", "24"}, std::pair{"SIZE(mem_section)", "8192"},
        std::pair{"OFFSET(mem_section.section_mem_map)", "16"}, std::pair{"LENGTH(node_data)", "0"},
        std::pair{"LENGTH(node_data)", "4097"}, std::pair{"SIZE(pglist_data)", "8388608"},
        std::pair{"OFFSET(pglist_data.node_zones)", "4160"}, std::pair{"OFFSET(zone.spanned_pages)", "1020"},
        std::pair{"SIZE(free_area)", "64"}, std::pair{"LENGTH(free_area.free_list)", "5"},
        std::pair{"LENGTH(free_area.free_list)", "0"}, std::pair{"SIZE(zone)", "512"}));

TEST_P(BadValue, IsRefused) {
  const auto layout = layout_with(GetParam().first, GetParam().second);
  ASSERT_FALSE(layout.ok());
  EXPECT_EQ(layout.error().kind(), ErrorKind::kDamaged) << layout.error().message();
}

}  // namespace
}  // namespace vmsieve
