// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include <sys/types.h>

#include "vmsieve/base/result.h"
#include "vmsieve/qemu/ram_layout.h"

namespace vmsieve {

/// Another process that has memory of these blocks of `pid` mapped shared, if there is one that we may look
/// into: a vhost-user backend, for example. Looks through /proc only when a block is shared memory at all.
Result<std::optional<pid_t>> other_process_with_memory(pid_t pid, const RamLayout& layout);

}  // namespace vmsieve
