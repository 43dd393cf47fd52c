// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/qmp_wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmsieve {
namespace {

using testing::HasSubstr;

TEST(LineAssembler, PutsPiecesTogether) {
  LineAssembler lines;
  ASSERT_TRUE(lines.feed("{\"ev"));
  EXPECT_EQ(lines.next_line(), std::nullopt);
  ASSERT_TRUE(lines.feed("ent\":1}\r"));
  EXPECT_EQ(lines.next_line(), std::nullopt);
  ASSERT_TRUE(lines.feed("\n{}"));
  EXPECT_EQ(lines.next_line(), "{\"event\":1}");
  EXPECT_EQ(lines.next_line(), std::nullopt);
}

TEST(LineAssembler, SplitsLinesThatComeTogether) {
  LineAssembler lines;
  ASSERT_TRUE(lines.feed("a\r\n\r\nb\nc"));
  EXPECT_EQ(lines.next_line(), "a");
  EXPECT_EQ(lines.next_line(), "b");
  EXPECT_EQ(lines.next_line(), std::nullopt);
  ASSERT_TRUE(lines.feed("\n"));
  EXPECT_EQ(lines.next_line(), "c");
}

TEST(LineAssembler, RefusesALineWithoutEnd) {
  LineAssembler lines{10};
  ASSERT_TRUE(lines.feed("0123456789"));
  const auto result = lines.feed("x");
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind(), ErrorKind::kDamaged);
}

TEST(QmpMessage, ClassifiesEachKind) {
  using Kind = QmpMessage::Kind;
  EXPECT_EQ(parse_qmp_message(R"({"QMP": {}})")->kind, Kind::kGreeting);
  EXPECT_EQ(parse_qmp_message(R"({"event": "STOP", "data": {}})")->kind, Kind::kEvent);
  EXPECT_EQ(parse_qmp_message(R"({"return": {}, "id": 7})")->id, 7u);
  EXPECT_EQ(parse_qmp_message(R"({"return": {}, "id": "x"})")->id, std::nullopt);
  const auto error = parse_qmp_message(R"({"error": {"class": "GenericError", "desc": "no"}, "id": 1})");
  EXPECT_EQ(error->kind, Kind::kError);
  EXPECT_EQ(error->error_text(), "no");
}

TEST(QmpMessage, ErrorWithoutWordsHasSomeAllTheSame) {
  EXPECT_EQ(parse_qmp_message(R"({"error": {"class": "C"}})")->error_text(), "C");
  EXPECT_THAT(parse_qmp_message(R"({"error": 5})")->error_text(), HasSubstr("without a description"));
}

TEST(QmpMessage, RefusesWhatIsNoMessage) {
  for (const char* line : {"", "{", "[]", "3", "{}", "{\"event\": 3}", "{\"return\": 1", "\xff\xfe{}"}) {
    const auto message = parse_qmp_message(line);
    ASSERT_FALSE(message) << line;
    EXPECT_EQ(message.error().kind(), ErrorKind::kDamaged);
  }
}

TEST(QmpMessage, RefusesDeepNestingWithoutParsing) {
  const std::string deep(200000, '[');
  const auto message = parse_qmp_message("{\"return\":" + deep);
  ASSERT_FALSE(message);
  EXPECT_THAT(message.error().message(), HasSubstr("nested"));
}

TEST(QmpMessage, BracketsInStringsAreNoNesting) {
  const std::string text = R"({"return": "\")" + std::string(2000, '[') + "\"}";
  EXPECT_TRUE(parse_qmp_message(text));
}

TEST(QmpCommand, CarriesArgumentsOnlyWhenThereAreAny) {
  EXPECT_EQ(format_qmp_command("stop", nlohmann::json::object(), 3), "{\"execute\":\"stop\",\"id\":3}\r\n");
  EXPECT_THAT(format_qmp_command("x", {{"a", 1}}, 3), HasSubstr(R"("arguments":{"a":1})"));
}

TEST(QmpCommand, ReplacesBytesThatAreNoUtf8) {
  EXPECT_THAT(format_qmp_command("x", {{"path", "\xff"}}, 1), HasSubstr("\xEF\xBF\xBD"));
}

TEST(JsonMembers, WrongTypesAreAbsent) {
  const nlohmann::json object{{"s", "text"}, {"n", 5u}, {"neg", -5}, {"t", true}};
  EXPECT_EQ(json_string(object, "n", "fallback"), "fallback");
  EXPECT_EQ(json_string(object, "s"), "text");
  EXPECT_EQ(json_u64(object, "n"), 5u);
  EXPECT_EQ(json_u64(object, "neg"), std::nullopt);
  EXPECT_TRUE(json_true(object, "t"));
  EXPECT_FALSE(json_true(object, "n"));
  EXPECT_EQ(json_string(nlohmann::json{1}, "s", "f"), "f");
  EXPECT_EQ(json_u64(nlohmann::json{1}, "s"), std::nullopt);
  EXPECT_FALSE(json_true(nlohmann::json{1}, "s"));
}

}  // namespace
}  // namespace vmsieve
