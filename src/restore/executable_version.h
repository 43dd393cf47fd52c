// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "vmsieve/base/result.h"

namespace vmsieve {

/// What `executable --version` says: "7.2.22" of "QEMU emulator version 7.2.22 (Debian ...)".
/// kIncompatible with the program's own words when it is no QEMU, kTimeout when it does not end
/// within 10 seconds.
Result<std::string> read_executable_version(const std::string& executable);

}  // namespace vmsieve
