// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/first_touches.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmsieve {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(FirstTouches, ComeBackInTheirOrder) {
  const std::vector<u64> frames = {7, 0, 3};
  EXPECT_THAT(decode_touches(encode_touches(frames), 8), ElementsAre(7, 0, 3));
  EXPECT_THAT(decode_touches(encode_touches({}), 8), IsEmpty());
}

TEST(FirstTouches, WhatIsNoFrameOrThereAlreadyIsPassedOver) {
  EXPECT_THAT(decode_touches(
                  R"({"version": 1, "frames": [2, 8, -1, 2, "3", 1.5, null, 1, 18446744073709551615]})", 8),
              ElementsAre(2, 1));
}

TEST(FirstTouches, AnythingElseIsNone) {
  for (const char* text :
       {"", "{", "[]", "7", R"({"version": 1})", R"({"frames": [1]})", R"({"version": 2, "frames": [1]})",
        R"({"version": 1, "frames": 1})", R"({"version": "1", "frames": [1]})", "\xff\xfe"})
    EXPECT_THAT(decode_touches(text, 8), IsEmpty()) << text;
}

}  // namespace
}  // namespace vmsieve
