// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/memory_sections.h"

#include <gtest/gtest.h>

#include "support/fake_guest.h"

namespace vmsieve {
namespace {

using vmsieve::testing::FakeGuest;

Result<std::vector<MemorySection>> sections_of(FakeGuest& guest) {
  return read_memory_sections(guest.memory(), guest.tables().root(),
                              *PageLayout::from(guest.kernel().vmcoreinfo()));
}

// Which of the guest's three sections are described, by number.
std::vector<u64> described(FakeGuest& guest) {
  const auto sections = sections_of(guest);
  EXPECT_TRUE(sections.ok()) << sections.error().message();
  std::vector<u64> numbers;
  for (const MemorySection& section : *sections) numbers.push_back(section.first.value / 4096);
  return numbers;
}

using Numbers = std::vector<u64>;

TEST(MemorySections, DescribesAllThatIsThere) {
  FakeGuest guest;
  EXPECT_EQ(described(guest), (Numbers{0, 1, 2}));
  EXPECT_EQ((*sections_of(guest))[2].memmap, guest.vmemmap() + 2 * 4096 * 64);
}

TEST(MemorySections, TakesAddressOfThePointerToo) {
  FakeGuest guest({.mem_section_by_pointer = true});
  EXPECT_EQ(described(guest), (Numbers{0, 1, 2}));
}

class MissingFlag : public ::testing::TestWithParam<u64> {};
INSTANTIATE_TEST_SUITE_P(Flags, MissingFlag, ::testing::Values(1, 2, 4));

TEST_P(MissingFlag, LeavesTheSectionOut) {
  FakeGuest guest;
  const GuestPhysical entry = guest.section_entry(1);
  guest.memory().write_le(entry, guest.memory().read_u64(entry) & ~GetParam());
  EXPECT_EQ(described(guest), (Numbers{0, 2}));
}

TEST(MemorySections, SectionFromBootMayBeTainted) {
  FakeGuest guest;
  const GuestPhysical entry = guest.section_entry(1);
  guest.memory().write_le(entry, guest.memory().read_u64(entry) | 0x30);
  EXPECT_EQ(described(guest), (Numbers{0, 1, 2}));
  EXPECT_EQ((*sections_of(guest))[1].memmap, guest.vmemmap() + 4096 * 64);
}

class HotAdded : public ::testing::TestWithParam<bool> {
 protected:
  // Sections as long as x86's: one, with 64 subsections.
  HotAdded() : guest({.new_usage_layout = GetParam(), .section_shift = 27}) {
    guest.memory().write_le(guest.section_entry(0), guest.vmemmap().value | 0x7);
  }
  bool is_described() { return sections_of(guest).ok(); }
  GuestPhysical bitmap() const { return FakeGuest::kUsages + (GetParam() ? 16 : 0); }
  FakeGuest guest;
};
INSTANTIATE_TEST_SUITE_P(UsageLayouts, HotAdded, ::testing::Bool());

TEST_P(HotAdded, WholeSectionIsDescribed) { EXPECT_TRUE(is_described()); }

TEST_P(HotAdded, SectionWithAMissingSubsectionIsNot) {
  guest.memory().write_le(bitmap(), ~u64{0} >> 1);
  EXPECT_FALSE(is_described());
}

TEST_P(HotAdded, SectionWithoutSubsectionsIsNot) {
  guest.memory().write_le(bitmap(), u64{0});
  EXPECT_FALSE(is_described());
}

TEST_P(HotAdded, TaintedSectionIsNot) {
  guest.memory().write_le(guest.section_entry(0), guest.vmemmap().value | 0x17);
  EXPECT_FALSE(is_described());
}

TEST_P(HotAdded, SectionWhoseUsageCannotBeReadIsNot) {
  guest.memory().write_le(guest.section_entry(0) + 8, u64{0});
  EXPECT_FALSE(is_described());
}

TEST(MemorySections, ShortHotAddedSectionIsNotDescribed) {
  FakeGuest guest;
  guest.memory().write_le(guest.section_entry(1), guest.vmemmap().value | 0x7);
  EXPECT_EQ(described(guest), (Numbers{0, 2}));
}

TEST(MemorySections, MapOutsideTheKernelsHalfIsNotDescribed) {
  FakeGuest guest;
  guest.memory().write_le(guest.section_entry(0), u64{0x7000'0000'000f});
  guest.memory().write_le(guest.section_entry(1), ~u64{0xfff} | 0xf);  // would wrap
  EXPECT_EQ(described(guest), (Numbers{2}));
}

TEST(MemorySections, NoneIsUnsupported) {
  FakeGuest guest;
  guest.memory().write_le(FakeGuest::kRoots, u64{0});
  const auto sections = sections_of(guest);
  ASSERT_FALSE(sections.ok());
  EXPECT_EQ(sections.error().kind(), ErrorKind::kUnsupported);
}

TEST(MemorySections, RootsThatCannotBeReadAreUnsupported) {
  FakeGuest guest;
  guest.memory().write_le(FakeGuest::kRoots, u64{0x7'0000'0000'0000});
  EXPECT_EQ(sections_of(guest).error().kind(), ErrorKind::kUnsupported);
  guest.set_key("SYMBOL(mem_section)", "ffffc90000000000");
  EXPECT_EQ(sections_of(guest).error().kind(), ErrorKind::kUnsupported);
}

TEST(MemorySections, RootBeyondTheArrayIsNotRead) {
  FakeGuest guest;
  guest.set_key("LENGTH(mem_section)", "0");
  EXPECT_EQ(sections_of(guest).error().kind(), ErrorKind::kUnsupported);
}

TEST(MemorySections, FailureToReadTheGuestIsPassedOn) {
  FakeGuest guest;
  guest.memory().fail_reads = true;
  EXPECT_EQ(sections_of(guest).error().kind(), ErrorKind::kVanished);
}

}  // namespace
}  // namespace vmsieve
