// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <sys/types.h>

#include <nlohmann/json.hpp>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/qemu/qmp_wire.h"

namespace vmsieve {

/// A client of QEMU's Machine Protocol over a UNIX stream socket
/// (QEMU docs/interop/qmp-spec.rst). One command at a time, from one thread.
class QmpClient {
 public:
  using Json = nlohmann::json;
  using Milliseconds = std::chrono::milliseconds;
  static constexpr Milliseconds kDefaultTimeout{10000};

  /// Connects, reads the greeting, negotiates capabilities. kNotFound when there is no such path,
  /// kVanished when nobody listens, kBusy when no greeting comes (a QMP socket serves one client at
  /// a time: another client, libvirt for example, holds it), kIncompatible when the peer does not
  /// speak QMP.
  static Result<std::unique_ptr<QmpClient>> connect(const std::string& path,
                                                    Milliseconds timeout = kDefaultTimeout);

  /// Runs one command and returns its `return` value. kRefused with QEMU's own text when QEMU
  /// answers with an error, kTimeout when it does not answer, kVanished when it goes away.
  /// `pass_fd`, if not negative, travels with the command (SCM_RIGHTS); it stays the caller's.
  Result<Json> execute(std::string_view command, Json arguments = Json::object(),
                       Milliseconds timeout = kDefaultTimeout, int pass_fd = -1);

  /// `human-monitor-command`: the text that the human monitor prints.
  Result<std::string> human(std::string_view command_line, Milliseconds timeout = kDefaultTimeout);

  /// Waits for an event of this name; events that came earlier and were not waited for count,
  /// the oldest first. At most the last 256 events are kept.
  Result<Json> wait_event(std::string_view name, Milliseconds timeout);

  /// The connected socket, for the pause guard's child. Owned by this object.
  int socket() const { return socket_.get(); }
  const std::string& path() const { return path_; }
  /// "major.minor.micro" out of the greeting, and the package suffix ("Debian 1:7.2+dfsg-7").
  const std::string& version() const { return version_; }
  const std::string& package() const { return package_; }
  /// The process at the other end (SO_PEERCRED), as this PID namespace sees it.
  Result<pid_t> peer_pid() const;

 private:
  using TimePoint = std::chrono::steady_clock::time_point;

  QmpClient() = default;
  Result<void> handshake(TimePoint deadline);
  Result<void> send(std::string_view bytes, int pass_fd, TimePoint deadline);
  Result<QmpMessage> receive(TimePoint deadline);
  Result<void> wait_readable(TimePoint deadline) const;
  void remember_event(Json event);

  UniqueFd socket_;
  std::string path_;
  std::string version_;
  std::string package_;
  LineAssembler lines_;
  std::deque<Json> events_;
  u64 next_id_ = 1;
  /// A command was cut off half-sent: the next one must resynchronise QEMU's parser first.
  bool torn_ = false;
  /// Errors without id still to come, one for each resynchronisation.
  u64 stray_errors_ = 0;
};

}  // namespace vmsieve
