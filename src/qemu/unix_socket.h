// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <string>

#include "vmsieve/base/fd.h"

namespace vmsieve {

/// Connects to a UNIX stream socket; the descriptor does not block and is closed on exec. Paths
/// longer than sun_path are reached through /proc/self/fd. kNotFound when there is no such path,
/// kVanished when nobody listens, kBusy when the listener's queue stays full until `deadline`.
Result<UniqueFd> connect_unix(const std::string& path, std::chrono::steady_clock::time_point deadline);

}  // namespace vmsieve
