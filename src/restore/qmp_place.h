// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"

namespace vmsieve {

/// A path for a QMP socket that is ours to use, and the log beside it (`<path>.log`).
///
/// The log's descriptor holds a lock (flock), and the new QEMU inherits it as its stdout and stderr: for as
/// long as QEMU lives nobody claims the same place, not even in the moment before its socket is there. QEMU
/// itself removes whatever socket it finds at its path.
struct QmpPlace {
  std::string path;
  std::string log_path;
  UniqueFd log;
};

/// kBusy when somebody listens there or has claimed it, kUsage when the path is too long for a UNIX socket,
/// is no socket, is not absolute, or its folder is not there. An old log is made empty.
Result<QmpPlace> claim_qmp_place(const std::string& path);

/// The first that can be had: the recorded QMP socket of `command_line` (argv[0] first; relative
/// to `working_directory`); then NAME-ID.qmp, NAME-ID-2.qmp, ... in $XDG_RUNTIME_DIR/vmsieve,
/// /run/vmsieve (root), or a new folder in /tmp. The folder is made with mode 0700.
Result<QmpPlace> claim_default_qmp_place(const std::vector<std::string>& command_line,
                                         const std::string& working_directory, const std::string& vm_name,
                                         const std::string& checkpoint_id);

}  // namespace vmsieve
