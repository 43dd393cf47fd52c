// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "cli.h"

namespace vmsieve::cli {

/// Does `work` in a child process that may outlive the command: when `work` calls `ready(status)`, this
/// process returns `status`, and the child goes on in a session of its own, connected to no terminal or pipe
/// of ours. Until then it dies with us. When `work` returns without that, its own result is the status. No
/// threads may run yet.
int run_in_background(const std::function<int(const std::function<void(int)>& ready)>& work,
                      const Common& common);

}  // namespace vmsieve::cli
