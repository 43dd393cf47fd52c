// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <signal.h>

namespace vmsieve {

/// All signals of the calling thread blocked while it lives, so that no handler of ours runs in a child
/// that is forked meanwhile. The child inherits the mask.
class SignalBlock {
 public:
  SignalBlock() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalBlock() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalBlock(const SignalBlock&) = delete;
  SignalBlock& operator=(const SignalBlock&) = delete;

 private:
  sigset_t before_{};
};

/// `argv` of main(), which must outlive all children: the system shows a process's command line from there
/// (proc(5), /proc/PID/cmdline), and children that enter_own_life() show their name instead.
void let_children_rename(int argc, char** argv) noexcept;

/// What a forked child does first: a session of its own, so that neither the terminal's Ctrl-C nor a kill
/// of the parent's process group reaches it, its own name, and no descriptors but the `count` ones of `kept`
/// (negative ones count for nothing), which are sorted for it. Async-signal-safe.
void enter_own_life(const char* name, int* kept, unsigned count) noexcept;

/// Of CLOCK_MONOTONIC. Async-signal-safe.
long now_milliseconds() noexcept;

}  // namespace vmsieve
