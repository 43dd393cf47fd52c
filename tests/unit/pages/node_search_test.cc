// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/node_search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_guest.h"
#include "vmsieve/pages/free_pages.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using vmsieve::testing::arm64_options;
using vmsieve::testing::FakeGuest;
using vmsieve::testing::FakeGuestOptions;

FreePages free_pages(FakeGuest& guest) {
  auto found = find_free_pages(guest.memory(), guest.kernel(), FindOptions{2, nullptr, {}});
  EXPECT_TRUE(found.ok()) << found.error().message();
  return found.ok() ? *std::move(found) : FreePages{};
}

Result<std::vector<NodePlace>> nodes(FakeGuest& guest, std::vector<FreeListEnd> ends) {
  const auto layout = PageLayout::from(guest.kernel().vmcoreinfo());
  return find_nodes(guest.memory(), guest.tables().root(), *layout, {guest.vmemmap().value, 2 * kMiB},
                    std::move(ends));
}

class Arm64FreePages : public ::testing::TestWithParam<Arm64Translation> {};

INSTANTIATE_TEST_SUITE_P(Translations, Arm64FreePages,
                         ::testing::Values(Arm64Translation{12, 48, false}, Arm64Translation{14, 52, true},
                                           Arm64Translation{16, 48, false}));

// 16 MiB and 17 MiB in, whatever the kernel's pages are.
TEST_P(Arm64FreePages, AreFoundThroughTheFreeLists) {
  FakeGuest guest(arm64_options(GetParam()));
  const u64 frames = u64{1} << (GetParam().page_shift - kPageShift);
  guest.free_block(0x1800 / frames, 4);
  guest.free_block(0x1c00 / frames, 0);
  guest.free_block(0x800 / frames, 2);
  const FreePages found = free_pages(guest);
  EXPECT_THAT(found.doubts, ::testing::IsEmpty());
  EXPECT_THAT(found.runs, ElementsAre(PfnRange{Pfn{0x800}, 4 * frames}, PfnRange{Pfn{0x1800}, 16 * frames},
                                      PfnRange{Pfn{0x1c00}, frames}));
  EXPECT_EQ(found.count, 21 * frames);
  EXPECT_EQ(found.described, 0x2f00u);
}

TEST_P(Arm64FreePages, AreDoubtedWhenCountersDisagree) {
  FakeGuest guest(arm64_options(GetParam()));
  const u64 frames = u64{1} << (GetParam().page_shift - kPageShift);
  guest.free_block(0x1800 / frames, 4);
  guest.flag_block(0x1c00 / frames, 0);
  const FreePages found = free_pages(guest);
  EXPECT_EQ(found.count, 0u);
  EXPECT_THAT(found.doubts,
              ElementsAre(HasSubstr("order 0: the kernel counts 0 free blocks, 1 are flagged")));
}

TEST_P(Arm64FreePages, BlockThatIsNotWhollyRamIsMalformed) {
  FakeGuestOptions options = arm64_options(GetParam());
  options.ram = {{Pfn{0x100}, 0x2eff}};
  FakeGuest guest(options);
  const u64 frames = u64{1} << (GetParam().page_shift - kPageShift);
  guest.free_block(0x2f00 / frames, 4 + kPageShift - GetParam().page_shift + 4);
  const FreePages found = free_pages(guest);
  EXPECT_EQ(found.count, 0u);
  EXPECT_THAT(found.doubts, ElementsAre(HasSubstr("part of it is not RAM")));
}

TEST(NodeSearch, FindsEveryNode) {
  FakeGuestOptions options = arm64_options();
  options.zones = {{0, 0, {Pfn{0x100}, 0xf00}}, {0, 1, {Pfn{0x1000}, 0x800}}, {1, 1, {Pfn{0x1800}, 0x1800}}};
  FakeGuest guest(options);
  const auto end = [&](std::size_t zone, u64 order, u64 type) {
    return FreeListEnd{guest.direct(guest.free_list(zone, order, type)).value, static_cast<u32>(order)};
  };
  const auto found = nodes(guest, {end(1, 10, 3), end(2, 0, 0), end(1, 3, 2), end(1, 10, 3)});
  ASSERT_TRUE(found.ok()) << found.error().message();
  EXPECT_THAT(*found, ::testing::UnorderedElementsAre(NodePlace{0, guest.direct(guest.node(0))},
                                                      NodePlace{1, guest.direct(guest.node(1))}));
}

TEST(NodeSearch, PassesOverEndsThatAreNoFreeLists) {
  FakeGuest guest(arm64_options());
  const FreeListEnd good{guest.direct(guest.free_list(0, 4, 1)).value, 4};
  const auto found = nodes(guest, {{0xdead'0000'0000'0100, 0},
                                   {0, 3},
                                   {guest.direct(FakeGuest::kUsages).value, 2},
                                   {guest.direct(guest.free_list(0, 4, 1)).value, 5},
                                   good});
  ASSERT_TRUE(found.ok()) << found.error().message();
  EXPECT_EQ(found->size(), 1u);
}

TEST(NodeSearch, LinkThatLeadsNowhereMakesItNoZone) {
  FakeGuest guest(arm64_options());
  guest.memory().write_le(guest.free_list(0, 7, 2), u64{0xffff'0000'0040'0000});
  const auto found = nodes(guest, {{guest.direct(guest.free_list(0, 4, 1)).value, 4}});
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.error().kind(), ErrorKind::kUnsupported);
}

TEST(NodeSearch, NodeWithImpossibleNumbersIsNone) {
  for (const auto& [offset, value] : {std::pair{4096U, u64{0}},
                                      {4096U, u64{17}},
                                      {4104U, ~u64{0}},
                                      {4120U, u64{1}},
                                      {4128U, u64{0xffff'ffff}}}) {
    FakeGuest guest(arm64_options());
    guest.memory().write_le(guest.node(0) + offset, static_cast<u32>(value));
    guest.memory().write_le(guest.node(0) + offset + 4, static_cast<u32>(value >> 32));
    EXPECT_FALSE(nodes(guest, {{guest.direct(guest.free_list(0, 4, 1)).value, 4}}).ok()) << offset;
  }
}

TEST(NodeSearch, RefusesMoreEndsThanAnyKernelHas) {
  FakeGuest guest(arm64_options());
  std::vector<FreeListEnd> ends;
  for (u64 i = 0; i < 20000; ++i) ends.push_back({i * 16, 0});
  EXPECT_THAT(nodes(guest, ends).error().message(), HasSubstr("20000 places"));
}

TEST(NodeSearch, GuestWithoutFreeBlocksHasNoNodes) {
  FakeGuest guest(arm64_options());
  const auto found = find_free_pages(guest.memory(), guest.kernel(), FindOptions{1, nullptr, {}});
  ASSERT_FALSE(found.ok());
  EXPECT_THAT(found.error().message(), HasSubstr("lead to no memory zone"));
}

TEST(NodeSearch, FailureToReadTheGuestIsAnError) {
  FakeGuest guest(arm64_options());
  const FreeListEnd end{guest.direct(guest.free_list(0, 4, 1)).value, 4};
  const auto layout = PageLayout::from(guest.kernel().vmcoreinfo());
  guest.memory().fail_reads = true;
  EXPECT_EQ(find_nodes(guest.memory(), guest.tables().root(), *layout, {guest.vmemmap().value, kMiB}, {end})
                .error()
                .kind(),
            ErrorKind::kVanished);
}

}  // namespace
}  // namespace vmsieve
