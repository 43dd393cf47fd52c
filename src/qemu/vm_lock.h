// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>

#include <sys/types.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"

namespace vmsieve {

/// Keeps other processes of this program off a VM for as long as it lives, or its process does: a record lock
/// (fcntl(2) F_SETLK) on the byte whose number is QEMU's process id, in one file for all VMs, vms.lock in
/// runtime_folder(). Such locks do not pass to forked
/// processes, and the kernel knows who holds one.
class VmLock {
 public:
  /// For a save, or to end the tracking: kBusy naming the process that holds it. Where the file cannot be
  /// made there is no lock, and no error.
  static Result<VmLock> take(pid_t qemu);
  /// For a watch, which is not in the way of a save: a lock of its own, in watches.lock beside it.
  static Result<VmLock> take_for_watch(pid_t qemu);
  /// For bringing its memory in (PageServer): in fills.lock.
  static Result<VmLock> take_for_fill(pid_t qemu);
  /// Waits until no other process brings the VM's memory in. kBusy naming it when that takes longer than
  /// `patience`. Not for a process that holds such a lock itself: it would lose it.
  static Result<void> wait_for_fill(pid_t qemu, std::chrono::milliseconds patience);

 private:
  static Result<VmLock> take_in(const char* file, pid_t qemu, const char* does);
  explicit VmLock(UniqueFd fd) : fd_(std::move(fd)) {}

  UniqueFd fd_;
};

}  // namespace vmsieve
