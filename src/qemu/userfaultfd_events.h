// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// Waits up to `timeout_ms` for page faults that a non-blocking userfaultfd tells of, and takes up to 64: the
/// pages' addresses, in no order, maybe more than once each. Empty when there was none in time (or a signal
/// came). kVanished when the process that it belongs to has gone. Any thread.
Result<std::vector<u64>> wait_for_pages(int userfaultfd, int timeout_ms);

}  // namespace vmsieve
