// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmsieve/base/units.h"

namespace vmsieve {

/// The order in which a guest touched its memory first after a lazy restore, as frames of the checkpoint's
/// index:
/// {"version": 1, "frames": [...]} (docs/format.md). It is advice: the next restore brings those in first.
std::string encode_touches(std::span<const u64> frames);

/// The frames of such a text, each once, and only those below `frame_count`; none when it is anything else.
std::vector<u64> decode_touches(std::string_view text, u64 frame_count);

}  // namespace vmsieve
