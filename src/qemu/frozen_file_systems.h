// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include <sys/types.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/qemu/qmp_wire.h"

namespace vmsieve {

/// Thaws the file systems of a guest that was restored frozen; it must run. Errors as of freeze().
Result<void> thaw_file_systems(const QemuProcess& process, std::chrono::milliseconds patience);

/// The file systems of a guest, frozen by its qemu-guest-agent (QEMU docs/interop/qemu-ga-ref,
/// guest-fsfreeze-*): what they held in memory is on the disks, and nothing is written until they are thawed.
/// A forked child thaws them when this process dies. From one thread.
class FrozenFileSystems {
 public:
  /// Connects to the agent and freezes all file systems, while the guest runs. kNotFound when the VM has no
  /// agent's socket, kTimeout when the agent does not answer within `patience` (nothing is frozen then, or is
  /// thawed as soon as the agent answers again), kRefused with the agent's own words.
  /// Forks a process, so call it before starting threads that hold locks.
  static Result<std::unique_ptr<FrozenFileSystems>> freeze(const QemuProcess& process,
                                                           std::chrono::milliseconds patience);
  /// Thaws them.
  ~FrozenFileSystems();
  FrozenFileSystems(const FrozenFileSystems&) = delete;
  FrozenFileSystems& operator=(const FrozenFileSystems&) = delete;

  /// With the guest running again. On failure the child goes on trying for a minute.
  Result<void> thaw(std::chrono::milliseconds patience = kThawPatience);
  static constexpr std::chrono::milliseconds kThawPatience{10000};
  /// How many there are.
  u64 count() const { return count_; }

 private:
  friend Result<void> thaw_file_systems(const QemuProcess& process, std::chrono::milliseconds patience);

  FrozenFileSystems() = default;
  static Result<std::unique_ptr<FrozenFileSystems>> connect(const QemuProcess& process,
                                                            std::chrono::steady_clock::time_point deadline);
  Result<nlohmann::json> ask(std::string_view command, std::chrono::steady_clock::time_point deadline);
  Result<void> tell(std::string_view command, const nlohmann::json& arguments,
                    std::chrono::steady_clock::time_point deadline);
  Result<nlohmann::json> hear(std::string_view command, std::chrono::steady_clock::time_point deadline);
  Result<void> synchronise(std::chrono::steady_clock::time_point deadline);
  Result<void> watch_over();

  UniqueFd socket_;
  LineAssembler lines_{kMiB};
  UniqueFd link_;  ///< to the child, which thaws when it breaks
  pid_t child_ = -1;
  u64 count_ = 0;
  bool frozen_ = false;  ///< maybe
};

}  // namespace vmsieve
