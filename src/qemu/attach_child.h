// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include "vmsieve/qemu/thread_call.h"

namespace vmsieve {

enum class AttachTask : u8 {
  kMove,   ///< make a userfaultfd, and leave the target none
  kShare,  ///< make one, and leave it in the target too
  kClose,  ///< close `descriptor` in the target
};

/// What the attach child works on. All of it is ready before the fork.
struct AttachPlan {
  pid_t target = -1;
  AttachTask task = AttachTask::kMove;
  int target_handle = -1;  ///< pidfd of the target
  int device = -1;      ///< the target's descriptor of /dev/userfaultfd, to make one by; -1: userfaultfd(2)
  int descriptor = -1;  ///< kClose: the target's
  int link = -1;        ///< SOCK_SEQPACKET, the other end is the parent's
  CallPlan calls;
};

/// What the child says when its work is done.
struct AttachReport {
  AttachOutcome outcome;
  int descriptor = -1;  ///< kShare: the target's
};

/// The whole life of the child that does the task in the target, entered right after fork(2) with all signals
/// blocked. Says one AttachReport on the link, with our descriptor of a userfaultfd beside it (SCM_RIGHTS)
/// when it made one and all went well. Works to its end although the parent is gone. When it exits or is
/// killed, the kernel lets the target go. Only async-signal-safe functions are called.
[[noreturn]] void run_attach_child(const AttachPlan& plan) noexcept;

}  // namespace vmsieve
