// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "vmsieve/base/result.h"
#include "vmsieve/disks/merge.h"

namespace vmsieve::tidying {

/// Merges an overlay that nobody has open. Where the VM went on to another overlay, it goes; the last one
/// stays, empty: it is the name by which the VM's disk is known (kBusy without a word). kBusy when it has to
/// wait, or when nobody can tell which of the two files is the newer.
Result<void> merge_by_qemu_img(const Merge& merge, const std::string& image);

}  // namespace vmsieve::tidying
