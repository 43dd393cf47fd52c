// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include <sys/types.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"
#include "vmsieve/qemu/libvirt_domain.h"

namespace vmsieve {

/// A QEMU system emulator found in /proc: its executable or its argv[0] is called qemu-system-* or
/// qemu-kvm.
struct QemuProcess {
  pid_t pid = 0;
  std::string executable;              ///< /proc/PID/exe
  std::vector<std::string> arguments;  ///< /proc/PID/cmdline, argv[0] first
  std::string working_directory;       ///< /proc/PID/cwd
  std::string name;                    ///< `-name`'s guest name; empty when not given
  /// UNIX sockets of its QMP monitors (-qmp, -qmp-pretty, -mon mode=control), absolute; those of a
  /// process in another mount namespace begin with /proc/PID/root. A monitor whose socket was
  /// passed as a descriptor (libvirt) is found by that descriptor.
  std::vector<std::string> qmp_paths;
  u64 start_ticks = 0;  ///< /proc/PID/stat field 22: pid and this name a process for good
};

/// Every QEMU system emulator that this user can see in /proc. A process that goes away while it
/// is looked at is left out.
Result<std::vector<QemuProcess>> list_qemu_processes();

/// Reads one process; kNotFound when there is none, kUnsupported when it is no QEMU.
Result<QemuProcess> read_qemu_process(pid_t pid);

/// libvirt's, which holds its monitor: every QEMU that libvirt starts has a secret of the id masterKey0
/// (libvirt, src/qemu/qemu_command.c, qemuBuildMasterKeyCommandLine; the id is from qemu_alias.c), and a
/// monitor whose socket was passed as a descriptor. A QEMU that was restored from a domain's checkpoint has
/// the secret too, and a monitor of its own.
bool started_by_libvirt(const QemuProcess& process);

/// A handle of the process (pidfd_open(2), Linux 5.3), readable when it has ended. kVanished when it is gone.
Result<UniqueFd> open_process(pid_t pid);

/// Does the process of this handle end within `patience`, or has it already?
bool has_ended(int process, std::chrono::milliseconds patience = std::chrono::milliseconds(0));

/// A VM that the user named, and the monitor to talk to.
struct VmAddress {
  QemuProcess process;
  std::string qmp_path;
  std::shared_ptr<const LibvirtDomain> libvirt =
      nullptr;  ///< of libvirt:NAME: `qmp_path` is there while it lives
};

/// Finds the VM that `spec` names: a QMP socket's path (it contains '/' or exists as a socket),
/// `pid:N`, a QEMU `-name`, or `libvirt:NAME` (or UUID; LibvirtDomain). kNotFound lists what there
/// is; kAmbiguous names the candidates. Of several monitors the first one that answers is taken; a QEMU of
/// libvirt's that is named otherwise is reached through libvirt all the same.
/// A process behind a QMP socket's path counts as QEMU, whatever its executable is called.
Result<VmAddress> resolve_vm(const std::string& spec);

}  // namespace vmsieve
