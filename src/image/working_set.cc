// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/image/working_set.h"

#include <algorithm>

#include "vmsieve/base/numbers.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/json_fields.h"

namespace vmsieve {

namespace {

constexpr std::string_view kFirstLine = "vmsieve-working-set 1";

Error damaged() { return {ErrorKind::kDamaged, "the working set is not whole"}; }

/// The text up to the next line's end, which is taken away.
std::string_view next_line(std::string_view& text) {
  const std::size_t end = text.find('\n');
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  return line;
}

u64 checksum_of(std::string_view text) { return checksum(std::as_bytes(std::span{text})); }

}  // namespace

std::string encode_working_set(const WorkingSet& frames) {
  std::string lines;
  for (std::size_t i = 0; i < std::min(frames.size(), kMaxWorkingSetFrames); ++i)
    lines += fmt::format("{}\n", frames[i]);
  return fmt::format("{}\n{:016x}\n{}", kFirstLine, checksum_of(lines), lines);
}

Result<WorkingSet> decode_working_set(std::string_view text, u64 frames) {
  if (next_line(text) != kFirstLine)
    return Error(ErrorKind::kUnsupported, "the working set is of another form");
  const auto sum = parse_hex(next_line(text), 16);
  if (!sum || *sum != checksum_of(text)) return damaged();
  WorkingSet set;
  std::vector<bool> seen(frames);
  while (!text.empty()) {
    if (set.size() == kMaxWorkingSetFrames || text.find('\n') == std::string_view::npos) return damaged();
    const auto frame = parse_number(next_line(text));
    if (!frame || *frame >= frames || seen[*frame]) return damaged();
    seen[*frame] = true;
    set.push_back(*frame);
  }
  return set;
}

}  // namespace vmsieve
