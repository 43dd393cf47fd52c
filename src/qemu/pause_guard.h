// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include <sys/types.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/qemu/qmp.h"

namespace vmsieve {

/// A second process that resumes the guest if this one dies while the guest is stopped by us.
///
/// The child is forked when the guard is made: in a session of its own, signals blocked, no allocation
/// and no locks after the fork, every descriptor closed but the link to its parent, the QMP connection
/// and a handle of the monitor's socket. When the link breaks while the guard is armed, the child sends
/// `cont` on the inherited connection and waits for the answer (QEMU discards what a client that
/// hung up has queued); when the connection is dead it connects anew. It never touches a guest that
/// was not running when the guard stopped it, and exits as soon as the link breaks otherwise.
///
/// What this process holds in memory at the fork is shared with the child copy-on-write: make the guard
/// before large buffers are.
class PauseGuard {
 public:
  /// Forks the watching child. Call while the guest runs. `qmp` must outlive the guard. A process that has
  /// begun to beat() and then does not for `longest_silence` is killed by the child: what it holds of the
  /// guest's memory would keep the guest waiting.
  static Result<std::unique_ptr<PauseGuard>> make(
      QmpClient& qmp, std::chrono::milliseconds longest_silence = std::chrono::milliseconds(0));

  /// Resumes the guest if it is still stopped by us, then lets the child go. If resuming fails, the
  /// child is left to try.
  ~PauseGuard();
  PauseGuard(const PauseGuard&) = delete;
  PauseGuard& operator=(const PauseGuard&) = delete;

  /// Arms the child, then `stop`. kVanished when the child is gone. A guest that its owner has stopped
  /// is left as it is; kRefused when it is in a state that ends by itself (suspended, incoming
  /// migration, ...). When `stop` fails in any other way the guest may be stopped all the same: call
  /// resume(), or drop the guard.
  Result<void> stop();
  /// `cont`, and when QEMU has confirmed it disarms the child. No-op when the guest was not running
  /// before stop().
  Result<void> resume();
  /// Tells the child that this process is well; from any thread.
  void beat() const;
  /// Ends the watch that the first beat() began.
  void end_beat() const;
  /// Was the guest running when stop() was called?
  bool was_running() const { return was_running_; }
  /// The child's process, for tests and for messages.
  pid_t child() const { return child_; }

 private:
  explicit PauseGuard(QmpClient& qmp) : qmp_(qmp) {}
  Result<void> arm();
  void wait_for_child();

  QmpClient& qmp_;
  UniqueFd link_;
  pid_t child_ = -1;
  bool was_running_ = false;
  bool stopped_ = false;
};

/// Beats ten times a second as long as it lives, from a thread of its own: a process that stands still as a
/// whole (SIGSTOP, a debugger) while the guest is stopped is killed by the guard's child, which then resumes
/// the guest. The guard must outlive it.
class Heartbeat {
 public:
  explicit Heartbeat(const PauseGuard& guard);
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

 private:
  void run();

  const PauseGuard& guard_;
  std::mutex mutex_;
  std::condition_variable ending_;
  bool ended_ = false;  // under mutex_
  std::thread thread_;
};

}  // namespace vmsieve
