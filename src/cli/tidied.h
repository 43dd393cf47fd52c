// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cli.h"
#include "vmsieve/disks/tidy.h"

namespace vmsieve::cli {

/// Prints what was put back together, a line for each file.
void print_tidied(const std::vector<TidiedFile>& tidied);

/// `tidied_disks` and `untidy_disks` of docs/json.md.
void add_tidied(Json& json, const Tidied& report);

}  // namespace vmsieve::cli
