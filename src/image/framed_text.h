// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// A text with a header line that tells whether all of it is there: "MAGIC VERSION LENGTH CHECKSUM\n", then
/// the body: LENGTH bytes, whose XXH3-64 is CHECKSUM, 16 hex digits.
struct TextFrame {
  std::string_view name;  ///< in errors: "manifest: its checksum ..."
  std::string_view magic;
  u64 version = 1;
};

std::string frame_text(const TextFrame& frame, std::string_view body);

/// The body as JSON; header, length, checksum and nesting are checked before it is parsed. kDamaged, or
/// kUnsupported for another version.
Result<nlohmann::json> parse_framed_json(const TextFrame& frame, std::string_view text);

}  // namespace vmsieve
