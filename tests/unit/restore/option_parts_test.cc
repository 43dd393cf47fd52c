// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/option_parts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmsieve/restore/option_table.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

TEST(OptionParts, DoubledCommasDoNotSplit) {
  EXPECT_THAT(split_parts("file=a,,b,if=none"), ElementsAre("file=a,,b", "if=none"));
}

TEST(OptionParts, EmptyPartsAreDropped) { EXPECT_THAT(split_parts("a,"), ElementsAre("a")); }

TEST(OptionParts, JoiningGivesTheSameAgain) {
  EXPECT_EQ(join_parts(split_parts("tap,id=n0,script=a,,b")), "tap,id=n0,script=a,,b");
}

TEST(OptionParts, EscapedTextIsOnePart) {
  EXPECT_THAT(OptionProperties("path=" + escape_commas("/run/a,b,,c"), "").all(),
              ElementsAre(Pair("path", "/run/a,b,,c")));
}

TEST(OptionProperties, FirstPartTakesTheImpliedKey) {
  EXPECT_THAT(OptionProperties("tap,id=n0", "type").all(),
              ElementsAre(Pair("type", "tap"), Pair("id", "n0")));
}

TEST(OptionProperties, OtherPartsWithoutValueAreOn) {
  EXPECT_TRUE(OptionProperties("socket,server,nowait", "backend").on("server"));
}

TEST(OptionProperties, LastValueCounts) { EXPECT_EQ(OptionProperties("a=1,a=2", "").get("a"), "2"); }

TEST(OptionProperties, MissingKeyIsNothing) { EXPECT_EQ(OptionProperties("a=1", "").get("b"), std::nullopt); }

TEST(OptionProperties, OnHasFourSpellings) {
  for (const char* on : {"on", "yes", "true", "y"}) {
    EXPECT_TRUE(OptionProperties(std::string{"share="} + on, "").on("share")) << on;
  }
  EXPECT_FALSE(OptionProperties("share=off", "").on("share"));
}

TEST(OptionProperties, JsonIsFlattened) {
  EXPECT_THAT(
      OptionProperties(R"({"driver":"qcow2","file":{"filename":"a,b"},"list":[1,"x"],"ro":true})", "driver")
          .all(),
      ElementsAre(Pair("driver", "qcow2"), Pair("file.filename", "a,b"), Pair("list.0", "1"),
                  Pair("list.1", "x"), Pair("ro", "on")));
}

TEST(OptionProperties, BrokenJsonHasNone) {
  EXPECT_THAT(OptionProperties(R"({"driver":)", "driver").all(), IsEmpty());
  EXPECT_THAT(OptionProperties("{}", "driver").all(), IsEmpty());
}

TEST(OptionProperties, DeepJsonHasNone) {
  const std::string deep = "{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}";
  EXPECT_THAT(OptionProperties(deep, "").all(), IsEmpty());
}

TEST(OptionTable, ShapesOfOptions) {
  EXPECT_EQ(option_shape("snapshot"), OptionShape::kFlag);
  EXPECT_EQ(option_shape("kernel"), OptionShape::kArgument);
  EXPECT_EQ(option_shape("S"), OptionShape::kFlag);
  EXPECT_EQ(option_shape("newer"), OptionShape::kUnknown);
}

TEST(OptionTable, OptionsWithTwoNames) {
  EXPECT_EQ(canonical_option("M"), "machine");
  EXPECT_EQ(canonical_option("h"), "help");
  EXPECT_EQ(canonical_option("m"), "m");
  EXPECT_EQ(implied_key("M"), "type");
}

}  // namespace
}  // namespace vmsieve
