// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include <fmt/format.h>

#include "vmsieve/base/units.h"

namespace vmsieve {

/// A text out of a stored file, fit for an error message: what is not printable ASCII, and the backslash,
/// becomes \xNN, so that it cannot steer a terminal and is UTF-8 whatever it was.
inline std::string printable(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    if (c >= 0x20 && c < 0x7f && c != '\\') {
      out.push_back(c);
    } else {
      fmt::format_to(std::back_inserter(out), "\\x{:02x}", static_cast<u8>(c));
    }
  }
  return out;
}

}  // namespace vmsieve
