// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/image/varint.h"

#include <array>
#include <vector>

#include <gtest/gtest.h>

namespace vmsieve {
namespace {

std::vector<std::byte> encoded(u64 value) {
  std::array<std::byte, kMaxVarintBytes> buffer{};
  return {buffer.data(), write_varint(buffer.data(), value)};
}

TEST(Varint, ReadingGivesWhatWasWritten) {
  for (unsigned shift = 0; shift < 64; ++shift) {
    for (const u64 delta : {~u64{0}, u64{0}, u64{1}}) {
      const u64 value = (u64{1} << shift) + delta;
      const auto bytes = encoded(value);
      std::span<const std::byte> in{bytes};
      EXPECT_EQ(read_varint(in), value);
      EXPECT_TRUE(in.empty());
    }
  }
}

TEST(Varint, TheLargestTakesTenBytes) { EXPECT_EQ(encoded(~u64{0}).size(), kMaxVarintBytes); }

TEST(Varint, LongerFormsThanNeededAreRefused) {
  const std::array bytes{std::byte{0x80}, std::byte{0}};
  std::span<const std::byte> in{bytes};
  EXPECT_EQ(read_varint(in), std::nullopt);
}

TEST(Varint, MoreThan64BitsAreRefused) {
  std::vector<std::byte> bytes(9, std::byte{0xff});
  bytes.push_back(std::byte{2});
  std::span<const std::byte> in{bytes};
  EXPECT_EQ(read_varint(in), std::nullopt);
}

TEST(Varint, ACutOffOneIsRefused) {
  const auto bytes = encoded(1u << 20);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    std::span<const std::byte> in = std::span{bytes}.first(size);
    EXPECT_EQ(read_varint(in), std::nullopt);
  }
}

TEST(Zigzag, SmallNumbersOfEitherSignBecomeSmall) {
  EXPECT_EQ(zigzag(0), 0u);
  EXPECT_EQ(zigzag(~u64{0}), 1u);
  EXPECT_EQ(zigzag(1), 2u);
  for (const u64 value : {u64{0}, u64{1}, ~u64{0}, u64{1} << 63, (u64{1} << 63) - 1}) {
    EXPECT_EQ(unzigzag(zigzag(value)), value);
  }
}

}  // namespace
}  // namespace vmsieve
