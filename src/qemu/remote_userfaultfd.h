// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include <sys/types.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"

namespace vmsieve {

/// Makes a userfaultfd (userfaultfd(2), close-on-exec, non-blocking, faults of kernel mode included) inside
/// the running process `pid`, so that it handles that process's memory, and returns our descriptor of
/// it; the process keeps none. The features are not negotiated yet (UFFDIO_API). Linux 5.6 or
/// newer; x86-64 only.
///
/// The process's main thread is stopped for a fraction of a millisecond (ptrace(2)), and runs the
/// call itself. It is left as it was: registers, FPU state and signal mask; a system call that was
/// interrupted restarts as after any stop (what signal(7) lists as returning EINTR after SIGSTOP
/// and SIGCONT, like epoll_wait, does so here too); signals that arrive meanwhile are delivered
/// afterwards. A process that is stopped by SIGSTOP stays stopped. Bytes below the red zone of the
/// thread's stack are overwritten, as by a signal's arrival.
///
/// The work is done by a forked child (session of its own, signals blocked), which works to its end
/// when this process dies, closing the descriptor. If the child itself is killed at any instant,
/// the thread finishes by way of a signal frame that was laid out for it before its registers
/// changed. A sleep or timed wait that needs the kernel's restart block then returns EINTR, as after
/// a handled signal. The descriptor is then closed as well, except when the process's code does not
/// hold the instructions for it (glibc's and QEMU's do): then an unused one may be left. Memory is
/// shared with the child copy-on-write: call this before large buffers are made.
///
/// kVanished when the process is gone; kBusy when another process traces it; kPermission when the
/// kernel lets us not trace it, or it may not make a userfaultfd; kUnsupported for a kernel without
/// userfaultfd, 32-bit programs, shadow stacks and unusual C libraries; kTimeout when the thread did
/// not stop within 2 s (uninterruptible sleep): it is not stopped afterwards. A seccomp filter
/// that kills a process for this call kills it; QEMU's own (-sandbox) permits it.
///
/// Any thread may call it, several at a time for different processes. It waits for no child but its own.
///
/// A process without CAP_SYS_PTRACE may make one only where the host's vm.unprivileged_userfaultfd is 1, or
/// with a descriptor of /dev/userfaultfd (Linux 6.1), which somebody with the right to it has opened and
/// passed: `device` is that descriptor's number in the process.
Result<UniqueFd> take_userfaultfd(pid_t pid, std::optional<int> device = std::nullopt);

/// A userfaultfd of which the process has a descriptor too: as long as it lives the memory stays handled,
/// whatever becomes of us.
struct SharedUserfaultfd {
  UniqueFd ours;
  int theirs = -1;
};

/// As take_userfaultfd(), but the process keeps its descriptor. Nothing is lost when we die: it is then
/// either not made, or closed, or kept.
Result<SharedUserfaultfd> share_userfaultfd(pid_t pid);

/// Closes a descriptor of the process in the same way. The caller knows that it is still the one it means.
Result<void> close_descriptor(pid_t pid, int descriptor);

}  // namespace vmsieve
