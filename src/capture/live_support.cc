// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/live_support.h"

#include "vmsieve/qemu/remote_userfaultfd.h"
#include "vmsieve/qemu/shared_mappings.h"

namespace vmsieve {

Result<std::unique_ptr<LiveCapture>> start_live_capture(const LiveMemory& memory, pid_t pid,
                                                        const LiveCapture::Options& options) {
  VMSIEVE_ASSIGN(const std::optional<pid_t> other, other_process_with_memory(pid, memory.layout()));
  if (other) {
    return make_error(
        ErrorKind::kUnsupported,
        "process {} has the guest's memory mapped too (vhost-user?), and its writes cannot be seen", *other);
  }
  VMSIEVE_ASSIGN(UniqueFd userfaultfd, take_userfaultfd(pid));
  VMSIEVE_ASSIGN(WriteProtection protection, WriteProtection::make(std::move(userfaultfd)));
  return LiveCapture::start(memory, pid, std::move(protection), options);
}

}  // namespace vmsieve
