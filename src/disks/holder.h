// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include <sys/types.h>

#include "vmsieve/base/result.h"
#include "vmsieve/disks/disk_needs.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/qemu/qmp.h"
#include "vmsieve/qemu/vm_lock.h"

namespace vmsieve::tidying {

/// A VM whose QEMU has a file open, with its monitor connected.
struct Holder {
  VmAddress vm;
  VmLock lock;
  std::unique_ptr<QmpClient> qmp;
};

/// From here on no other process takes a checkpoint of the VM. One that was taken until then may need what
/// the records as they were read do not tell, and so they are read again. kBusy when the process is no QEMU
/// with a monitor, or another one of this program has the VM.
Result<Holder> hold(pid_t pid, DiskNeeds& needs);

}  // namespace vmsieve::tidying
