// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/image/working_set.h"

#include <algorithm>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmsieve/image/frame_codec.h"

namespace vmsieve {
namespace {

std::string sealed(std::string_view lines) {
  return fmt::format("vmsieve-working-set 1\n{:016x}\n{}", checksum(std::as_bytes(std::span{lines})), lines);
}

TEST(WorkingSet, KeepsItsOrder) {
  for (const WorkingSet& set : {WorkingSet{}, WorkingSet{7}, WorkingSet{9, 0, 3}}) {
    const auto decoded = decode_working_set(encode_working_set(set), 10);
    ASSERT_TRUE(decoded) << decoded.error().message();
    EXPECT_EQ(*decoded, set);
  }
  EXPECT_EQ(encode_working_set({9, 0}), sealed("9\n0\n"));
}

TEST(WorkingSet, EndsSomewhere) {
  WorkingSet set(kMaxWorkingSetFrames + 5);
  std::iota(set.begin(), set.end(), u64{0});
  const std::string text = encode_working_set(set);
  EXPECT_LE(text.size(), kMaxWorkingSetBytes);
  const auto decoded = decode_working_set(text, set.size());
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->size(), kMaxWorkingSetFrames);
  EXPECT_TRUE(std::ranges::equal(*decoded, std::span{set}.first(kMaxWorkingSetFrames)));
}

TEST(WorkingSet, WhatIsNotWholeIsDamaged) {
  const std::string good = encode_working_set({12, 5, 33});
  ASSERT_TRUE(decode_working_set(good, 34));
  for (std::size_t i = 0; i < good.size(); ++i) {
    EXPECT_FALSE(decode_working_set(std::string_view{good}.substr(0, i), 34)) << i;
    std::string flipped = good;
    flipped[i] ^= 1;
    EXPECT_FALSE(decode_working_set(flipped, 34)) << i;
  }
  // Frames that the checkpoint has not, or twice; numbers that are none.
  EXPECT_EQ(decode_working_set(good, 33).error().kind(), ErrorKind::kDamaged);
  for (const char* lines :
       {"1\n1\n", "1\n-2\n", "1\n 2\n", "1\n\n", "1\n2", "1 2\n", "99999999999999999999999\n"})
    EXPECT_EQ(decode_working_set(sealed(lines), 34).error().kind(), ErrorKind::kDamaged) << lines;
  EXPECT_EQ(decode_working_set("vmsieve-working-set 2\n", 34).error().kind(), ErrorKind::kUnsupported);
}

}  // namespace
}  // namespace vmsieve
