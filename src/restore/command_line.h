// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "vmsieve/base/result.h"

namespace vmsieve {

/// One option of a QEMU command line: `-name` without the dashes, and its argument if it has one.
/// A bare argument (a disk image) has an empty name.
struct QemuOption {
  std::string name;
  std::optional<std::string> value;
  friend bool operator==(const QemuOption&, const QemuOption&) = default;
};

/// A QEMU command line taken apart (QEMU qemu-options.hx tells which options take an argument).
class QemuCommandLine {
 public:
  /// `arguments` without argv[0].
  static Result<QemuCommandLine> parse(const std::vector<std::string>& arguments);

  std::vector<std::string> arguments() const;
  const std::vector<QemuOption>& options() const { return options_; }

  /// Replaces every option `name` by one with `value` (at the place of the first), or adds it.
  void replace(const std::string& name, std::optional<std::string> value);
  void remove(const std::string& name);

  /// `--set OPTION=VALUE`: `serial=file:OUT`, `nic=none`. For options that may stand more than once with
  /// an id, `--set netdev=user,id=n0` replaces the one of that id and leaves the others.
  Result<void> set(const std::string& assignment);

  /// The machine type pinned to `versioned` (for example pc-q35-7.2), other machine properties kept.
  void pin_machine(const std::string& versioned);

  /// Removes what a restore gives itself: QMP and human monitors in every spelling (-qmp,
  /// -qmp-pretty, -monitor, -mon with its -chardev), -incoming, -S, -daemonize, -pidfile, -loadvm,
  /// -D and the like; `-nographic` keeps its meaning without stdio.
  void strip_for_restore();

 private:
  std::vector<QemuOption> options_;
};

/// Why a recorded command line cannot be replayed as it is, each with the option that solves it.
/// Inherited descriptors (fd=N, vhostfd=, -add-fd), files that are not there any more.
std::vector<std::string> find_obstacles(const QemuCommandLine& command_line,
                                        const std::string& working_directory);

}  // namespace vmsieve
