// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "vmsieve/base/result.h"
#include "vmsieve/disks/holder.h"
#include "vmsieve/disks/merge.h"
#include "vmsieve/disks/vm_chain.h"

namespace vmsieve::tidying {

/// Merges by the QEMU that has the overlay open, while its guest runs (block-commit), goes on with a merge
/// that somebody was killed in, and removes the overlay. kBusy when it has to wait. Blocks until all is
/// copied. Not for a domain of libvirt's.
Result<void> merge_by_qemu(const Merge& merge, const std::string& image, Holder& holder);

/// The VM has left an overlay that is merged, and who was to have QEMU close it was killed.
Result<void> close_merged(const Merge& merge);

/// Has QEMU close its nodes in an overlay; it refuses where a disk uses them, which is no error.
void close_nodes(const VmChains& chains, const std::string& overlay, QmpClient& qmp);

}  // namespace vmsieve::tidying
