// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/option_string.h"

namespace vmsieve {

namespace {

/// Takes the text up to the next single comma off the front of `text`, doubled commas made single.
std::string take_part(std::string_view& text) {
  std::string part;
  std::size_t i = 0;
  for (; i < text.size(); ++i) {
    if (text[i] == ',') {
      if (i + 1 >= text.size() || text[i + 1] != ',') break;
      ++i;
    }
    part += text[i];
  }
  text.remove_prefix(i < text.size() ? i + 1 : i);
  return part;
}

}  // namespace

OptionString::OptionString(std::string_view text, std::string_view implied_key) {
  bool first = true;
  while (!text.empty()) {
    const std::string part = take_part(text);
    const std::size_t equals = part.find('=');
    if (equals != std::string::npos) {
      parts_.emplace_back(part.substr(0, equals), part.substr(equals + 1));
    } else if (first && !implied_key.empty()) {
      parts_.emplace_back(implied_key, part);
    } else {
      parts_.emplace_back(part, "on");
    }
    first = false;
  }
}

std::optional<std::string> OptionString::get(std::string_view key) const {
  for (auto part = parts_.rbegin(); part != parts_.rend(); ++part) {
    if (part->first == key) return part->second;
  }
  return std::nullopt;
}

}  // namespace vmsieve
