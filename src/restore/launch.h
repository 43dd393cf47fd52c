// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <sys/types.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/qemu/qmp.h"
#include "vmsieve/restore/qmp_place.h"

namespace vmsieve {

struct LaunchOptions {
  std::string executable;              ///< absolute
  std::vector<std::string> arguments;  ///< without argv[0], monitors, -incoming, -S
  std::string working_directory;
  /// -S: the guest stays stopped when the stream is complete. Otherwise QEMU runs it at once.
  bool stopped = false;
  /// `-incoming defer`: what it loads is told it through its monitor, and send() is of no use. Such a QEMU
  /// does not end by itself when we do.
  bool defer = false;
  /// Descriptors that QEMU gets too, as kFirstInherited and the numbers behind it; at most 64.
  std::vector<int> inherited = {};
  static constexpr int kFirstInherited = 4;
  std::chrono::milliseconds timeout{
      120000};  ///< from the start to QMP's answer (large RAM may be preallocated)
};

/// A QEMU that was started to take a migration stream, and is not yet on its own.
///
/// It is our child, in a session of its own; stdin is /dev/null, stdout and stderr go to
/// the log beside the QMP socket, no other descriptor is inherited. The stream comes through
/// a socket pair, `-incoming fd:3`: QEMU waits on it from the start, serves QMP meanwhile, and
/// ends by itself when the other end closes before the stream is complete. So it never outlives a
/// restore that dies (kill -9 included), and never runs on part of a checkpoint: only the
/// stream's last bytes make it run. Measured with QEMU 7.2 and 10.0: it is gone 16 ms later.
///
/// From one thread.
class RunningQemu {
 public:
  /// Starts it and connects to its monitor. When it ends instead, the error carries its own words.
  static Result<std::unique_ptr<RunningQemu>> start(const LaunchOptions& options, QmpPlace place);
  /// Unless detached: SIGKILL, reaped, socket and log removed.
  ~RunningQemu();

  pid_t pid() const { return pid_; }
  QmpClient& qmp() { return *qmp_; }
  const std::string& qmp_path() const { return place_.path; }
  const std::string& log_path() const { return place_.log_path; }

  /// Puts bytes into the stream. kVanished when QEMU does not want them any more, kTimeout when it takes
  /// none for half a minute.
  Result<void> send(std::span<const std::byte> bytes);
  /// No more bytes will come.
  void close_stream() { stream_.reset(); }

  /// Waits for the word that all is loaded (`query-migrate`; there are no events unless asked for).
  /// kIncompatible with QEMU's reason when it could not, kTimeout after `patience`.
  Result<void> wait_until_loaded(std::chrono::milliseconds patience);
  /// Leaves the monitor to others, of whom it serves one at a time; qmp() must not be called after it.
  void leave_monitor() { qmp_.reset(); }

  /// If QEMU has ended (or does within `patience`), an error with its last words, else nothing.
  std::optional<Error> ended(std::chrono::milliseconds patience);
  /// The more telling one of `error` and ended().
  Error explain(const Error& error);

  /// QEMU is on its own from here on. It stays our child: a program that lives on calls wait_for_exit().
  void detach() { detached_ = true; }

 private:
  RunningQemu(pid_t pid, UniqueFd stream, QmpPlace place);
  Result<void> connect(std::chrono::milliseconds timeout);
  std::string last_words() const;

  pid_t pid_;
  UniqueFd stream_;
  QmpPlace place_;
  std::unique_ptr<QmpClient> qmp_;
  std::optional<int> wait_status_;  ///< once reaped
  bool detached_ = false;
};

/// Waits until the child `pid` ends and returns its exit status, 128 + N for a signal N as a shell has it.
Result<int> wait_for_exit(pid_t pid);

}  // namespace vmsieve
