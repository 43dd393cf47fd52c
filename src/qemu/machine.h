// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/vcpu.h"
#include "vmsieve/qemu/qmp.h"
#include "vmsieve/qemu/ram_layout.h"

namespace vmsieve {

/// What a QEMU machine is, read through its monitor. Each function says what it asks QEMU.

/// RAM blocks and guest-physical map of the machine of process `pid`: `info ramblock`,
/// `info mtree -f`, `gpa2hva`, and, where `info ramblock` prints no host addresses (before
/// QEMU 8.1 or so), QEMU's own RAMBlock structures found in its heap.
Result<RamLayout> read_ram_layout(QmpClient& qmp, pid_t pid);

/// Registers of every vCPU, of the kind that the emulator's architecture has (`query-target`); exact
/// when the guest is stopped. x86: `info registers -a`. arm64: the same, and of a stopped guest the
/// system registers, from the device state (milliseconds), of a running one `gva2gpa` at each vCPU that
/// runs kernel code. Others: their number (`query-cpus-fast`).
Result<Vcpus> read_vcpus(QmpClient& qmp);

/// Versioned machine type, for example "pc-q35-7.2" (`qom-get /machine type`).
Result<std::string> read_machine_type(QmpClient& qmp);

/// `query-status`: is the guest running, and QEMU's word for its state.
struct RunState {
  bool running = false;
  std::string status;
};
Result<RunState> read_run_state(QmpClient& qmp);

/// kvm, tcg, ... (`query-kvm`, else "tcg").
Result<std::string> read_accelerator(QmpClient& qmp);

/// `query-migrate` blocked-reasons: kRefused with QEMU's text when the machine cannot be
/// migrated now, which also rules out a checkpoint.
Result<void> check_migratable(QmpClient& qmp);

/// Writable block devices (`query-block`): device or node names with their files.
struct WritableDisk {
  std::string device;
  std::string file;
};
Result<std::vector<WritableDisk>> read_writable_disks(QmpClient& qmp);

/// All device state except RAM, as `xen-save-devices-state` writes it, through a descriptor passed
/// to QEMU. The guest must be stopped. The bytes begin with QEMU's magic "QEVM".
Result<std::vector<std::byte>> save_device_state(QmpClient& qmp);

}  // namespace vmsieve
