// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "vmsieve/base/result.h"
#include "vmsieve/capture/attach.h"

namespace vmsieve {

/// Are all writes to the VM's memory seen by write protection? kUnsupported with one sentence when they are
/// not: another process has the memory mapped; a device may discard memory of a file, whose protection stays
/// behind; a device has the memory pinned and writes to it past the page tables (VFIO, vDPA).
Result<void> check_writes_are_seen(AttachedVm& vm);

/// Reads one of its devices straight into guest memory (cache=none, or a target in the kernel)? The kernel
/// then writes to pages that it has pinned: the beginning of such a read is seen, its end is not. Under way
/// are they only while the VM runs: to stop, QEMU waits for all of them.
Result<bool> reads_directly(QmpClient& qmp);

}  // namespace vmsieve
