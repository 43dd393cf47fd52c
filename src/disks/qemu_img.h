// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/result.h"

namespace vmsieve {

/// Runs qemu-img, which must be in $PATH: kUnsupported when it is not; kRefused with its own words. What it
/// says when it succeeds.
Result<std::string> run_qemu_img(const std::vector<std::string>& arguments);

}  // namespace vmsieve
