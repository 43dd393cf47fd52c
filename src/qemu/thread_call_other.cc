// SPDX-License-Identifier: Apache-2.0
#if !defined(__x86_64__)

#include <cerrno>

#include "vmsieve/qemu/thread_call.h"

namespace vmsieve {

Result<CallPlan> plan_calls(pid_t pid) {
  return make_error(ErrorKind::kUnsupported,
                    "running a system call in process {} is not supported on this architecture", pid);
}

// Never reached, since there is no plan.
AttachOutcome ThreadCall::prepare() { return {AttachStep::kMode, ENOSYS}; }
AttachOutcome ThreadCall::start(long, std::array<u64, 3>, bool) { return {AttachStep::kMode, ENOSYS}; }
AttachOutcome ThreadCall::read_result(long&) const { return {AttachStep::kMode, ENOSYS}; }
AttachOutcome ThreadCall::restore() { return {AttachStep::kMode, ENOSYS}; }

}  // namespace vmsieve

#endif
