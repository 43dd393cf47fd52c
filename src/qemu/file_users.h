// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <sys/stat.h>
#include <sys/types.h>

namespace vmsieve {

/// The ids of all processes that this user may see.
std::vector<pid_t> visible_processes();

enum class OpenedFor { kAnything, kWriting };

/// Has the process this file open, as far as this user may see? (/proc/PID/fd, /proc/PID/fdinfo;
/// Linux Documentation/filesystems/proc.rst.)
bool has_open(pid_t pid, const struct stat& file, OpenedFor access);

/// A process that has the file at `path` open for writing, as far as this user may see; none when there is
/// no such file, or it is no regular one.
std::optional<pid_t> writer_of(const std::string& path);

}  // namespace vmsieve
