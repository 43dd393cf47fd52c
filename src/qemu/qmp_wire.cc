// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/qmp_wire.h"

#include <utility>

namespace vmsieve {

namespace {

// Deeper than any reply (query-block of a long backing chain nests two levels per image), shallow
// enough for every recursion over a value.
constexpr int kMaxNesting = 512;

bool nested_too_deep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
      continue;
    }
    if (c == '"') in_string = true;
    if ((c == '{' || c == '[') && ++depth > kMaxNesting) return true;
    if (c == '}' || c == ']') --depth;
  }
  return false;
}

Error not_qmp(std::string_view line, std::string_view why) {
  constexpr std::size_t kShown = 80;
  std::string shown;
  for (const char c : line.substr(0, kShown)) shown += c >= 0x20 && c < 0x7f ? c : '?';
  return make_error(ErrorKind::kDamaged, "the monitor sent {} bytes that are no QMP message ({}): {}{}",
                    line.size(), why, shown, line.size() > kShown ? "..." : "");
}

}  // namespace

Result<void> LineAssembler::feed(std::string_view bytes) {
  if (start_ > 0) {
    buffer_.erase(0, start_);
    scanned_ -= start_;
    start_ = 0;
  }
  buffer_.append(bytes);
  if (buffer_.size() > max_line_bytes_ && buffer_.find('\n', scanned_) == std::string::npos) {
    return make_error(ErrorKind::kDamaged, "the monitor sent a line of more than {} bytes", max_line_bytes_);
  }
  return {};
}

std::optional<std::string> LineAssembler::next_line() {
  for (;;) {
    const std::size_t end = buffer_.find('\n', scanned_);
    if (end == std::string::npos) {
      scanned_ = buffer_.size();
      return std::nullopt;
    }
    std::size_t length = end - start_;
    if (length > 0 && buffer_[start_ + length - 1] == '\r') --length;
    std::string line = buffer_.substr(start_, length);
    start_ = scanned_ = end + 1;
    if (!line.empty()) return line;
  }
}

std::string QmpMessage::error_text() const {
  const std::string text = json_string(body, "desc");
  return text.empty() ? json_string(body, "class", "an error without a description") : text;
}

Result<QmpMessage> parse_qmp_message(std::string_view line) {
  if (nested_too_deep(line)) return not_qmp(line, "nested too deeply");
  nlohmann::json json = nlohmann::json::parse(line.begin(), line.end(), nullptr, false);
  if (json.is_discarded()) return not_qmp(line, "not JSON");
  if (!json.is_object()) return not_qmp(line, "not an object");

  QmpMessage message;
  message.id = json_u64(json, "id");
  if (json.contains("event")) {
    if (!json["event"].is_string()) return not_qmp(line, "an event without a name");
    message.kind = QmpMessage::Kind::kEvent;
    message.body = std::move(json);
  } else if (json.contains("return")) {
    message.kind = QmpMessage::Kind::kReturn;
    message.body = std::move(json["return"]);
  } else if (json.contains("error")) {
    message.kind = QmpMessage::Kind::kError;
    message.body = std::move(json["error"]);
  } else if (json.contains("QMP")) {
    message.kind = QmpMessage::Kind::kGreeting;
    message.body = std::move(json["QMP"]);
  } else {
    return not_qmp(line, "neither event nor reply");
  }
  return message;
}

std::string format_qmp_command(std::string_view command, const nlohmann::json& arguments, u64 id) {
  nlohmann::json json{{"execute", std::string{command}}, {"id", id}};
  if (arguments.is_object() && !arguments.empty()) json["arguments"] = arguments;
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\r\n";
}

std::string json_string(const nlohmann::json& object, const char* key, std::string fallback) {
  if (!object.is_object()) return fallback;
  const auto member = object.find(key);
  if (member == object.end() || !member->is_string()) return fallback;
  return member->get_ref<const std::string&>();
}

std::optional<u64> json_u64(const nlohmann::json& object, const char* key) {
  if (!object.is_object()) return std::nullopt;
  const auto member = object.find(key);
  if (member == object.end() || !member->is_number_unsigned()) return std::nullopt;
  return member->get<u64>();
}

bool json_true(const nlohmann::json& object, const char* key) {
  if (!object.is_object()) return false;
  const auto member = object.find(key);
  return member != object.end() && member->is_boolean() && member->get<bool>();
}

}  // namespace vmsieve
