// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/image/json_fields.h"

#include <cmath>
#include <limits>

namespace vmsieve {
namespace {

using Json = nlohmann::json;

constexpr const char* kHexMember = "hex";

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

/// Well-formed UTF-8 as the Unicode standard has it (table 3-7: no overlong forms, no surrogates), which is
/// also what the JSON library takes.
bool is_utf8(std::string_view text) {
  const auto at = [&text](std::size_t i) { return static_cast<u8>(text[i]); };
  std::size_t i = 0;
  while (i < text.size()) {
    const u8 lead = at(i);
    std::size_t more = 0;
    u8 low = 0x80;  // bounds of the second byte
    u8 high = 0xbf;
    if (lead < 0x80) {
      ++i;
      continue;
    }
    if (lead >= 0xc2 && lead <= 0xdf) {
      more = 1;
    } else if (lead >= 0xe0 && lead <= 0xef) {
      more = 2;
      if (lead == 0xe0) low = 0xa0;
      if (lead == 0xed) high = 0x9f;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
      more = 3;
      if (lead == 0xf0) low = 0x90;
      if (lead == 0xf4) high = 0x8f;
    } else {
      return false;
    }
    if (text.size() - i <= more || at(i + 1) < low || at(i + 1) > high) return false;
    for (std::size_t k = 2; k <= more; ++k) {
      if (at(i + k) < 0x80 || at(i + k) > 0xbf) return false;
    }
    i += more + 1;
  }
  return true;
}

/// The text that json_text() made `value` of.
std::optional<std::string> text_of(const Json& value) {
  if (const auto* text = value.get_ptr<const Json::string_t*>()) return *text;
  if (!value.is_object() || value.size() != 1 || !value.contains(kHexMember)) return std::nullopt;
  const auto* hex = value.find(kHexMember)->get_ptr<const Json::string_t*>();
  if (hex == nullptr || hex->size() % 2 != 0) return std::nullopt;
  std::string text;
  text.reserve(hex->size() / 2);
  for (std::size_t i = 0; i < hex->size(); i += 2) {
    const int high = hex_digit((*hex)[i]);
    const int low = hex_digit((*hex)[i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    text.push_back(static_cast<char>(high * 16 + low));
  }
  return text;
}

}  // namespace

JsonFields::JsonFields(const Json& value, std::string path, std::optional<Error>& error)
    : value_(&value), path_(std::move(path)), error_(error) {
  if (!error_ && !value.is_object()) {
    error_ = path_.empty() ? make_error(ErrorKind::kDamaged, "manifest: the JSON text is no object")
                           : make_error(ErrorKind::kDamaged, "manifest member {}: it is no object", path_);
  }
}

std::string JsonFields::path_of(const char* name) const {
  return path_.empty() ? std::string{name} : fmt::format("{}.{}", path_, name);
}

void JsonFields::fail(const char* name, std::string_view what) const {
  if (!error_) error_ = make_error(ErrorKind::kDamaged, "manifest member {}: {}", path_of(name), what);
}

const Json* JsonFields::find(const char* name) const {
  if (error_) return nullptr;
  const auto found = value_->find(name);
  if (found == value_->end()) {
    fail(name, "it is missing");
    return nullptr;
  }
  return &*found;
}

const Json* JsonFields::array(const char* name) const {
  const Json* value = find(name);
  if (value != nullptr && !value->is_array()) {
    fail(name, "it is no list");
    return nullptr;
  }
  return value;
}

void JsonFields::get(const char* name, bool& out) const {
  const Json* value = find(name);
  if (value == nullptr) return;
  const auto* flag = value->get_ptr<const Json::boolean_t*>();
  if (flag == nullptr) return fail(name, "it is neither true nor false");
  out = *flag;
}

void JsonFields::get(const char* name, u64& out) const {
  const Json* value = find(name);
  if (value == nullptr) return;
  const auto* number = value->get_ptr<const Json::number_unsigned_t*>();
  if (number == nullptr) return fail(name, "it is no whole number from 0 to 2^64 - 1");
  out = *number;
}

void JsonFields::get(const char* name, u32& out) const {
  u64 wide = 0;
  get(name, wide);
  if (wide > std::numeric_limits<u32>::max()) return fail(name, "it is larger than 2^32 - 1");
  out = static_cast<u32>(wide);
}

void JsonFields::get(const char* name, double& out) const {
  const Json* value = find(name);
  if (value == nullptr) return;
  if (!value->is_number()) return fail(name, "it is no number");
  const double number = value->get<double>();
  if (!std::isfinite(number)) return fail(name, "it is no finite number");
  out = number;
}

void JsonFields::get(const char* name, std::string& out) const {
  const Json* value = find(name);
  if (value == nullptr) return;
  std::optional<std::string> text = text_of(*value);
  if (!text) return fail(name, "it is no text");
  out = std::move(*text);
}

void JsonFields::get(const char* name, std::vector<std::string>& out) const {
  const Json* elements = array(name);
  if (elements == nullptr) return;
  for (const Json& element : *elements) {
    std::optional<std::string> text = text_of(element);
    if (!text) return fail(name, "an element is no text");
    out.push_back(std::move(*text));
  }
}

void JsonFields::get_hex(const char* name, u64& out) const {
  const Json* value = find(name);
  if (value == nullptr) return;
  const auto* text = value->get_ptr<const Json::string_t*>();
  const std::optional<u64> number = text != nullptr ? parse_hex(*text, 16) : std::nullopt;
  if (!number) return fail(name, "it is not 16 lower-case hex digits");
  out = *number;
}

JsonFields JsonFields::object(const char* name) const {
  static const Json kEmpty = Json::object();
  const Json* value = find(name);
  return {value != nullptr ? *value : kEmpty, path_of(name), error_};
}

nlohmann::ordered_json json_text(std::string_view text) {
  if (is_utf8(text)) return std::string{text};
  std::string hex;
  hex.reserve(2 * text.size());
  for (const char c : text) fmt::format_to(std::back_inserter(hex), "{:02x}", static_cast<u8>(c));
  return {{kHexMember, hex}};
}

nlohmann::ordered_json json_texts(const std::vector<std::string>& texts) {
  auto list = nlohmann::ordered_json::array();
  for (const std::string& text : texts) list.push_back(json_text(text));
  return list;
}

bool json_deeper_than(std::string_view text, unsigned levels) {
  unsigned depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > levels) return true;
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return false;
}

std::optional<u64> parse_hex(std::string_view text, std::size_t digits) {
  if (text.size() != digits) return std::nullopt;
  u64 value = 0;
  for (const char c : text) {
    const int digit = hex_digit(c);
    if (digit < 0) return std::nullopt;
    value = value << 4 | static_cast<u64>(digit);
  }
  return value;
}

}  // namespace vmsieve
