// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string_view>

#include "vmsieve/base/units.h"

namespace vmsieve {

/// Where a long operation is. `total_bytes` is 0 while it is not known.
struct Progress {
  std::string_view phase;  ///< a few words, for people; valid during the call only
  u64 done_bytes = 0;
  u64 total_bytes = 0;
};

/// Called from the thread that runs the operation, or from one of its workers, never from two at
/// once. It must return quickly: the guest may be stopped.
using ProgressFunction = std::function<void(const Progress&)>;

}  // namespace vmsieve
