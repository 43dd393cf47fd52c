// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include <sys/types.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"

namespace vmsieve {

/// A child process that ends a QEMU (SIGKILL) whose memory is still to come, or which is not to live on by
/// itself, and says so in QEMU's log, when the process that brings it dies. It lives in a session of its own,
/// does nothing else, and ends with QEMU or when it is dismissed.
class MissingGuard {
 public:
  /// `qemu` is a handle of the process, `log` an open file; both are used by the child only.
  static Result<std::unique_ptr<MissingGuard>> make(int qemu, int log);
  /// The child takes it for our death, unless it was dismissed.
  ~MissingGuard();

  /// Is the child still there? Any thread.
  bool stands() const;
  /// All is there: the child ends. Any thread.
  void dismiss() const;

 private:
  MissingGuard(UniqueFd link, pid_t child) : link_(std::move(link)), child_(child) {}

  UniqueFd link_;
  pid_t child_;
};

}  // namespace vmsieve
