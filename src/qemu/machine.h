// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
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

/// A writable block device (`query-block`).
struct WritableDisk {
  std::string device;  ///< name of the drive, or, of one of -blockdev, of the node, or path of the device
  std::string file;    ///< as QEMU calls it: a path, or "json:{...}"
  std::string drive;   ///< name of the drive; empty for one of -blockdev
  std::string qdev;    ///< path of the device that it is plugged into; may be empty
  std::string node;    ///< name of its topmost node
  std::string driver;  ///< of that node: "raw", "qcow2", a filter's, ...
  u64 virtual_bytes = 0;
  bool encrypted = false;
  bool direct = false;    ///< cache.direct
  bool no_flush = false;  ///< cache.no-flush
  std::string detect_zeroes;
};
Result<std::vector<WritableDisk>> read_writable_disks(QmpClient& qmp);

/// The path in what QEMU calls an image's file: "/x", "file:/x", or "json:{...}" whose innermost `file` is
/// one of driver `file` or `host_device`. None when it is no local file.
std::optional<std::string> image_path(const std::string& file);

/// All device state except RAM, as `xen-save-devices-state` writes it, through a descriptor passed
/// to QEMU. The guest must be stopped. The bytes begin with QEMU's magic "QEVM".
Result<std::vector<std::byte>> save_device_state(QmpClient& qmp);

}  // namespace vmsieve
