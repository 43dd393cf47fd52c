// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmsieve/base/units.h"

namespace vmsieve {

/// What a QEMU command line says about QMP monitors and the guest's name; no I/O.

/// A QMP monitor on a UNIX socket: a path as written, or the number of a descriptor that QEMU
/// was given with the listening socket.
struct MonitorSocket {
  std::string path;
  std::optional<u64> descriptor;
};

/// `-qmp`, `-qmp-pretty` and `-mon ...,mode=control`, with the `-chardev` they name; monitors that
/// are not on a UNIX socket are left out.
std::vector<MonitorSocket> monitor_sockets(const std::vector<std::string>& arguments);

/// The socket of a guest agent: a `-device virtserialport` (or its JSON) whose name is
/// org.qemu.guest_agent.0, with the `-chardev socket` it names; a path as written. None when there is none,
/// or when QEMU does not listen there.
std::optional<std::string> guest_agent_socket(const std::vector<std::string>& arguments);

/// `-name foo` or `-name guest=foo,debug-threads=on`; the last one counts.
std::string guest_name(const std::vector<std::string>& arguments);

/// Is `program` (a path or file name, " (deleted)" allowed) a QEMU system emulator's name?
bool is_qemu_program(std::string_view program);

/// The arguments of /proc/PID/cmdline, NUL-terminated each.
std::vector<std::string> split_cmdline(std::string_view cmdline);

/// /proc/PID/stat field 22. The second field, the name, may hold anything, ')' too.
std::optional<u64> start_ticks_of_stat(std::string_view stat);

/// inode -> path of /proc/PID/net/unix, abstract sockets left out.
std::map<u64, std::string> unix_socket_paths(std::string_view net_unix);

}  // namespace vmsieve
