// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/process_memory.h"

#include <sys/uio.h>
#include <cerrno>

namespace vmsieve {

Result<void> read_process_memory(pid_t pid, HostVirtual address, std::span<std::byte> out) {
  std::size_t done = 0;
  while (done < out.size()) {
    const iovec local{out.data() + done, out.size() - done};
    // An address of the other process, never followed here.
    const iovec remote{reinterpret_cast<void*>(address.value + done), out.size() - done};
    const ssize_t n = ::process_vm_readv(pid, &local, 1, &remote, 1, 0);
    if (n > 0) {
      done += static_cast<std::size_t>(n);
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == ESRCH) return make_error(ErrorKind::kVanished, "process {} is gone", pid);
    return errno_error(n < 0 ? errno : EFAULT, fmt::format("cannot read {} bytes at {:#x} of process {}",
                                                           out.size() - done, address.value + done, pid));
  }
  return {};
}

Result<void> write_process_memory(pid_t pid, HostVirtual address, std::span<const std::byte> bytes) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    // Only read, but iovec(3) serves both ways.
    const iovec local{const_cast<std::byte*>(bytes.data() + done), bytes.size() - done};
    const iovec remote{reinterpret_cast<void*>(address.value + done), bytes.size() - done};
    const ssize_t n = ::process_vm_writev(pid, &local, 1, &remote, 1, 0);
    if (n > 0) {
      done += static_cast<std::size_t>(n);
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == ESRCH) return make_error(ErrorKind::kVanished, "process {} is gone", pid);
    return errno_error(n < 0 ? errno : EFAULT, fmt::format("cannot write {} bytes at {:#x} of process {}",
                                                           bytes.size() - done, address.value + done, pid));
  }
  return {};
}

}  // namespace vmsieve
