// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "vmsieve/base/result.h"
#include "vmsieve/image/manifest.h"
#include "vmsieve/qemu/migration_stream.h"
#include "vmsieve/qemu/qmp.h"
#include "vmsieve/restore/command_line.h"

namespace vmsieve {

/// What is checked before a QEMU is started. Every error says what to do.

/// `executable` as an absolute path: a path is relative to our working directory, a name is looked up in
/// $PATH. kNotFound when there is none that can be run.
Result<std::string> find_executable(const std::string& executable);

/// A checkpoint does not hold the disks: kIncompatible names those that the guest could write to.
Result<void> check_disks(const Manifest& manifest, bool disks_as_they_are);

/// kIncompatible when the command line asks for KVM and `kvm_device` cannot be opened.
Result<void> check_accelerator(const QemuCommandLine& command_line,
                               const std::string& kvm_device = "/dev/kvm");

/// kIncompatible with all that find_obstacles() says.
Result<void> check_obstacles(const QemuCommandLine& command_line, const std::string& working_directory);

/// Devices that write to main memory before a stream is loaded (`-device loader,data=`): pages that a
/// checkpoint leaves out do not read as zeros then.
bool fills_memory_itself(const QemuCommandLine& command_line);

/// Of a program's words before it is started, or of the greeting of one that was and got nothing yet.
/// kIncompatible when `version` is older than the checkpoint's QEMU: an older one refuses, or worse ignores,
/// what it does not know. A newer one, and another release of the same series, take the old machine types.
Result<void> check_version(const Manifest& manifest, std::string_view version);

/// What is checked when the new QEMU answers, before it gets the first byte.

/// Compares `info ramblock` with the checkpoint's blocks: QEMU would find out too, but in the middle and in
/// other words. kIncompatible names block and sizes. Blocks that only the new QEMU has are left alone.
Result<void> check_blocks(const Manifest& manifest, QmpClient& qmp);

/// What this QEMU expects of a stream (`info migrate`, with -a from QEMU 10.1 on); kIncompatible when the
/// device sections were written otherwise.
Result<StreamFormat> read_stream_format(QmpClient& qmp, std::span<const std::byte> device_state);

/// The value of `NAME: on` in the text of `info migrate`.
std::optional<bool> migration_global(std::string_view info_migrate, std::string_view name);

}  // namespace vmsieve
