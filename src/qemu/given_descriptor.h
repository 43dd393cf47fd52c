// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"
#include "vmsieve/qemu/qmp.h"

namespace vmsieve {

/// A descriptor that QEMU has from us (`add-fd`): /dev/fdset/SET.
struct GivenDescriptor {
  u64 set = 0;
  u64 number = 0;  ///< of the descriptor in QEMU
};

/// It is marked as ours (`opaque`). With an unmarked one in a domain's QEMU, as a killed vmsieve would leave
/// it, libvirtd 11.3 ended in a segmentation fault at `virsh save`: qemuFDPassNewFromMonitor() compares the
/// marks of all.
Result<GivenDescriptor> give_descriptor(QmpClient& qmp, int fd,
                                        QmpClient::Milliseconds patience = QmpClient::kDefaultTimeout);

/// From then on QEMU has it only where it has opened it.
Result<void> take_back_descriptor(QmpClient& qmp, const GivenDescriptor& given);

/// What a vmsieve that was killed has left in a QEMU. While nobody else of ours works on that (VmLock).
Result<void> take_back_left_descriptors(QmpClient& qmp);

}  // namespace vmsieve
