// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include <sys/types.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/qemu/qmp.h"

namespace vmsieve {

/// A second process that resumes the guest if this one dies while the guest is stopped by us.
///
/// The child is forked when the guard is made (in a process group of its own, no shared locks, no
/// allocation after the fork), holds the QMP connection's socket too, and waits on a pipe. When the
/// pipe closes without a farewell and the guard was armed, the child writes `cont` on that socket
/// and waits for the answer; when the socket is dead it connects anew. It never touches a guest
/// that was not running when the guard stopped it.
class PauseGuard {
 public:
  /// Forks the watching child. Call before threads that matter hold locks, and while the guest
  /// runs. `qmp` must outlive the guard.
  static Result<std::unique_ptr<PauseGuard>> make(QmpClient& qmp);

  /// Resumes the guest if it is still stopped by us, then lets the child go.
  ~PauseGuard();

  /// Arms the child, then `stop`. Refuses (kVanished) when the child is gone.
  Result<void> stop();
  /// `cont`, then disarms the child. No-op when the guest was not running before stop().
  Result<void> resume();
  /// Was the guest running when stop() was called?
  bool was_running() const { return was_running_; }

 private:
  explicit PauseGuard(QmpClient& qmp) : qmp_(qmp) {}

  QmpClient& qmp_;
  UniqueFd pipe_;
  pid_t child_ = -1;
  bool was_running_ = false;
  bool stopped_ = false;
};

}  // namespace vmsieve
