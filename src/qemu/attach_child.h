// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include "vmsieve/qemu/thread_call.h"

namespace vmsieve {

/// What the attach child works on. All of it is ready before the fork.
struct AttachPlan {
  pid_t target = -1;
  int target_handle = -1;  ///< pidfd of the target
  int device = -1;  ///< the target's descriptor of /dev/userfaultfd, to make one by; -1: userfaultfd(2)
  int link = -1;    ///< SOCK_SEQPACKET, the other end is the parent's
  CallPlan calls;
};

/// The whole life of the child that takes a userfaultfd out of the target, entered right after fork(2) with
/// all signals blocked. Says one AttachOutcome on the link, with the descriptor beside it
/// (SCM_RIGHTS) when it is kDone. Works to its end although the parent is gone. When it exits or is
/// killed, the kernel lets the target go. Only async-signal-safe functions are called.
[[noreturn]] void run_attach_child(const AttachPlan& plan) noexcept;

}  // namespace vmsieve
