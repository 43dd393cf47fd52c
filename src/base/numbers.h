// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <charconv>
#include <optional>
#include <string_view>

#include "vmsieve/base/units.h"

namespace vmsieve {

/// The number that is all of `text`, without prefix or blanks, with a sign only where `Number` is signed;
/// nothing when the text is anything else, or the number too large.
template <typename Number = u64>
std::optional<Number> parse_number(std::string_view text, int base = 10) {
  Number value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace vmsieve
