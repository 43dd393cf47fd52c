// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "vmsieve/base/result.h"
#include "vmsieve/disks/holder.h"
#include "vmsieve/disks/merge.h"

namespace vmsieve::tidying {

/// As merge_by_qemu() by libvirt, which knows from then on what the domain's disks are, and closes what is
/// merged.
Result<void> merge_by_libvirt(const Merge& merge, const std::string& image, Holder& holder);

}  // namespace vmsieve::tidying
