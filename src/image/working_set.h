// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// What a restored guest wanted first: frames of a checkpoint's index, in the order in which it waited for
/// them, none twice. A hint: whatever it says, a restore is right without it. docs/format.md has its form.
using WorkingSet = std::vector<u64>;

inline constexpr std::size_t kMaxWorkingSetFrames = 65536;
inline constexpr u64 kMaxWorkingSetBytes = kMiB;  ///< of its text

/// Frames behind the first kMaxWorkingSetFrames are left out.
std::string encode_working_set(const WorkingSet& frames);
/// `frames`: so many has the checkpoint. kDamaged when it is not whole, or names other ones.
Result<WorkingSet> decode_working_set(std::string_view text, u64 frames);

}  // namespace vmsieve
