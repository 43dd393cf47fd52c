// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

namespace vmsieve {

/// What the parent says on the link, one byte a message.
enum class GuardMessage : char {
  kArm = 'A',  ///< answered with kArmed
  kArmed = 'a',
  kDisarm = 'D',    ///< not answered
  kBeat = 'B',      ///< not answered; the parent is watched from the first one on
  kNoBeat = 'b',    ///< not answered; the parent is watched no more
  kFarewell = 'Q',  ///< the child exits
};

/// What the pause guard's child owns. All of it is ready before the fork.
struct GuardDescriptors {
  int link = -1;     ///< SOCK_SEQPACKET, the other end is the parent's
  int monitor = -1;  ///< the parent's QMP connection
  int handle = -1;   ///< O_PATH descriptor of the monitor's socket, to connect anew; -1 if none
  pid_t parent = -1;
  long silence_ms = 0;  ///< a parent that is watched and says nothing for so long is killed
};

/// The whole life of the child, entered right after fork(2) with all signals blocked. Only
/// async-signal-safe functions are called (signal-safety(7)): the parent may have had threads that
/// held locks.
[[noreturn]] void run_guard_child(GuardDescriptors own) noexcept;

}  // namespace vmsieve
