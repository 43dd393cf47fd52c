// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/option_parts.h"

#include <nlohmann/json.hpp>

namespace vmsieve {

namespace {

using Json = nlohmann::json;
using Properties = std::vector<std::pair<std::string, std::string>>;

std::string unescape_commas(std::string_view text) {
  std::string plain;
  for (std::size_t i = 0; i < text.size(); ++i) {
    plain += text[i];
    if (text[i] == ',' && i + 1 < text.size() && text[i + 1] == ',') ++i;
  }
  return plain;
}

std::string plain_text(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "on" : "off";
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// Objects and arrays deeper than any option of QEMU's stay as they are.
constexpr int kMaxDepth = 16;

void flatten(const Json& value, const std::string& key, int depth, Properties& out) {
  if (!value.is_structured() || depth == kMaxDepth) {
    out.emplace_back(key, plain_text(value));
    return;
  }
  std::size_t index = 0;
  for (auto item = value.begin(); item != value.end(); ++item, ++index) {
    const std::string name = value.is_object() ? item.key() : std::to_string(index);
    flatten(*item, key.empty() ? name : key + "." + name, depth + 1, out);
  }
}

/// nlohmann's parser recurses by an own stack, but destroying or copying a value recurses for
/// real: deeply nested text is refused before it is parsed.
bool too_deep(std::string_view text) {
  int depth = 0;
  for (const char c : text) {
    if (c == '{' || c == '[') ++depth;
    if (c == '}' || c == ']') --depth;
    if (depth > 256) return true;
  }
  return false;
}

}  // namespace

std::vector<std::string> split_parts(std::string_view value) {
  std::vector<std::string> parts;
  std::string part;
  for (std::size_t i = 0; i < value.size(); ++i) {
    if (value[i] != ',') {
      part += value[i];
    } else if (i + 1 < value.size() && value[i + 1] == ',') {
      part += ",,";
      ++i;
    } else {
      parts.push_back(std::move(part));
      part.clear();
    }
  }
  if (!part.empty() || !parts.empty()) parts.push_back(std::move(part));
  std::erase(parts, std::string{});
  return parts;
}

std::string join_parts(const std::vector<std::string>& parts) {
  std::string value;
  for (const std::string& part : parts) {
    if (!value.empty()) value += ',';
    value += part;
  }
  return value;
}

std::string_view part_key(std::string_view part, bool first, std::string_view implied) {
  const std::size_t equals = part.find('=');
  if (equals != std::string_view::npos) return part.substr(0, equals);
  return first && !implied.empty() ? implied : part;
}

std::string escape_commas(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    escaped += c;
    if (c == ',') escaped += ',';
  }
  return escaped;
}

OptionProperties::OptionProperties(std::string_view value, std::string_view implied) {
  if (value.starts_with('{')) {
    if (too_deep(value)) return;
    const Json json = Json::parse(value, nullptr, false);
    if (json.is_object()) flatten(json, "", 0, properties_);
    return;
  }
  bool first = true;
  for (const std::string& part : split_parts(value)) {
    const std::string_view key = part_key(part, first, implied);
    const std::size_t equals = part.find('=');
    std::string plain = "on";
    if (equals != std::string::npos) {
      plain = unescape_commas(std::string_view{part}.substr(equals + 1));
    } else if (key != part) {
      plain = unescape_commas(part);
    }
    properties_.emplace_back(key, std::move(plain));
    first = false;
  }
}

std::optional<std::string> OptionProperties::get(std::string_view key) const {
  for (auto property = properties_.rbegin(); property != properties_.rend(); ++property) {
    if (property->first == key) return property->second;
  }
  return std::nullopt;
}

bool OptionProperties::on(std::string_view key) const {
  const std::optional<std::string> value = get(key);
  return value && (*value == "on" || *value == "yes" || *value == "true" || *value == "y");
}

}  // namespace vmsieve
