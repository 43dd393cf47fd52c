// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vmsieve/restore/command_line.h"

namespace vmsieve {

/// Why a recorded command line cannot be replayed as it is, one sentence each, with the option that
/// solves it:
///  - descriptors that the first QEMU inherited (fd=N, fds=, vhostfd=, /dev/fdset/N, -add-fd);
///  - files and folders that are not there;
///  - UNIX sockets it would listen on that another process listens on now: QEMU removes and remakes
///    such a socket, so the other process (most likely the checkpointed QEMU itself) would lose it;
///  - files it would empty that another process writes to (-serial file:PATH);
///  - a -readconfig file that defines monitors.
/// Looks at names and at who has what open, opens nothing but the -readconfig file. Relative paths start from
/// `working_directory`.
std::vector<std::string> find_obstacles(const QemuCommandLine& command_line,
                                        const std::string& working_directory);

/// The files that a QEMU with this command line makes or empties, and the UNIX sockets that it listens on:
/// what two of them cannot share. Whole paths, without devices.
std::vector<std::string> outputs_of(const QemuCommandLine& command_line,
                                    const std::string& working_directory);

/// `path` as a process in `working_directory` sees it.
std::string resolve_path(const std::string& path, const std::string& working_directory);

/// Does a process of this network namespace listen on the UNIX socket `path`, by /proc/net/unix (`text`)?
/// Asking the socket itself would be a connection to it.
bool listens_on(std::string_view proc_net_unix, const std::string& path);

}  // namespace vmsieve
