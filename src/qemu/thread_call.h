// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>

#include <sys/types.h>
#include <sys/user.h>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// Running system calls in a stopped thread of another process, with a way back that needs no tracer.
/// All that depends on the architecture is behind this header; today x86-64 only.
///
/// When a tracer dies, its tracee runs on with the registers that it has. So before the first register
/// is changed, a signal frame with all of the thread's state (registers, FPU, signal mask) is
/// written below its stack's red zone, where the kernel would put one if a signal came now; and
/// the thread runs the call at an instruction in its own code after which it returns into that
/// frame by itself.

/// Places in another process's code. Bytes, not functions: they may lie inside longer instructions.
struct CallSites {
  u64 call = 0;           ///< system call, return
  u64 signal_return = 0;  ///< rt_sigreturn
  /// Move the last call's result to the first argument, return; and pop the number of the next call,
  /// return. With both, the way back closes the descriptor that the call made. 0 when not found.
  u64 pass_result = 0;
  u64 pop_number = 0;

  bool closes_result() const { return pass_result != 0 && pop_number != 0; }
};

/// What is found out before the thread is stopped.
struct CallPlan {
  CallSites sites;
  /// Where each component of the FPU state ends in the standard layout, in bytes; 0 when there is none.
  std::array<u32, 64> fpu_component_end{};
};

/// Searches the executable mappings of files (and the vdso) of a running process. Reading them brings
/// pages of its program in, which changes nothing else. kUnsupported when there is no way back
/// (the architecture, no such code, a shadow stack), kVanished when the process is gone.
Result<CallPlan> plan_calls(pid_t pid);

/// What a step of working on the other thread came to. `error` is an errno value.
enum class AttachStep : u8 {
  kDone,
  kSeize,       ///< PTRACE_SEIZE refused
  kInterrupt,   ///< it did not stop in time
  kGone,        ///< the process ended
  kRegisters,   ///< reading or writing registers
  kMode,        ///< it runs code of another mode (32 bits)
  kCode,        ///< the code has changed since plan_calls
  kStack,       ///< no room for the frame below its stack
  kCall,        ///< the system call's own errno
  kTake,        ///< pidfd_getfd refused
  kTrapped,     ///< an exception in the middle of the call; undone
  kUnfinished,  ///< the call did not end in time; it goes back by itself
};

struct AttachOutcome {
  AttachStep step = AttachStep::kDone;
  int error = 0;

  bool ok() const { return step == AttachStep::kDone; }
};

/// System calls in one thread, which its owner has stopped by ptrace (in a ptrace-event-stop).
/// Used in a forked child: nothing here allocates, locks or throws.
class ThreadCall {
 public:
  ThreadCall(pid_t thread, const CallPlan& plan) : thread_(thread), plan_(plan) {}

  /// Saves the state and writes the way back. On failure nothing is changed.
  AttachOutcome prepare();
  /// Sets the thread up for a call; it begins when the owner resumes the thread.
  /// The first one also blocks the signals that can wait. If the owner dies at any instant after
  /// this, the thread finishes the call and continues where it was; a descriptor that the call
  /// `makes_descriptor` is closed, if the sites allow it.
  AttachOutcome start(long number, std::array<u64, 3> arguments, bool makes_descriptor);
  /// In the stop at a call's end: its result, or -errno.
  AttachOutcome read_result(long& result) const;
  /// Registers and signal mask as they were in prepare(), so that an interrupted system call
  /// restarts when the owner detaches.
  AttachOutcome restore();

 private:
  // x86-64 with AMX needs 11 KiB.
  static constexpr std::size_t kFpuBytes = 16 * kKiB;

  AttachOutcome read_state();
  AttachOutcome check_code() const;
  /// The size of the FPU state that is in use, 0 when unknown.
  std::size_t complete_fpu_state(std::size_t length);

  pid_t thread_;
  const CallPlan& plan_;
  user_regs_struct registers_{};
  u64 signal_mask_ = 0;
  u64 frame_ = 0;  ///< address in the other process
  bool masked_ = false;
  std::size_t fpu_length_ = 0;
  alignas(64) std::array<std::byte, kFpuBytes + 64> fpu_{};
};

}  // namespace vmsieve
