// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace vmsieve {

/// What the parent says on the link, one byte a message.
enum class GuardMessage : char {
  kArm = 'A',  ///< answered with kArmed
  kArmed = 'a',
  kDisarm = 'D',    ///< not answered
  kFarewell = 'Q',  ///< the child exits
};

/// What the pause guard's child owns. All of it is ready before the fork.
struct GuardDescriptors {
  int link = -1;     ///< SOCK_SEQPACKET, the other end is the parent's
  int monitor = -1;  ///< the parent's QMP connection
  int handle = -1;   ///< O_PATH descriptor of the monitor's socket, to connect anew; -1 if none
};

/// The whole life of the child, entered right after fork(2) with all signals blocked. Only
/// async-signal-safe functions are called (signal-safety(7)): the parent may have had threads that
/// held locks.
[[noreturn]] void run_guard_child(GuardDescriptors own) noexcept;

}  // namespace vmsieve
