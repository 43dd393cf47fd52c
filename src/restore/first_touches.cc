// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/first_touches.h"

#include <nlohmann/json.hpp>

namespace vmsieve {

namespace {

using Json = nlohmann::json;

constexpr u64 kVersion = 1;

}  // namespace

std::string encode_touches(std::span<const u64> frames) {
  return Json{{"version", kVersion}, {"frames", frames}}.dump();
}

std::vector<u64> decode_touches(std::string_view text, u64 frame_count) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return {};
  const auto version = json.find("version");
  const auto frames = json.find("frames");
  if (version == json.end() || *version != kVersion || frames == json.end() || !frames->is_array()) return {};
  std::vector<bool> seen(frame_count);
  std::vector<u64> order;
  for (const Json& element : *frames) {
    if (!element.is_number_unsigned()) continue;
    const u64 frame = element.get<u64>();
    if (frame >= frame_count || seen[frame]) continue;
    seen[frame] = true;
    order.push_back(frame);
  }
  return order;
}

}  // namespace vmsieve
