// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/vm_lock.h"

#include <fcntl.h>
#include <cerrno>
#include <thread>

#include "vmsieve/base/runtime_folder.h"

namespace vmsieve {

namespace {

constexpr char kFills[] = "fills.lock";

}  // namespace

Result<VmLock> VmLock::take(pid_t qemu) { return take_in("vms.lock", qemu, "saving"); }

Result<VmLock> VmLock::take_for_watch(pid_t qemu) { return take_in("watches.lock", qemu, "watching"); }

Result<VmLock> VmLock::take_for_fill(pid_t qemu) {
  return take_in(kFills, qemu, "bringing in the memory of");
}

Result<void> VmLock::wait_for_fill(pid_t qemu, std::chrono::milliseconds patience) {
  constexpr std::chrono::milliseconds kInterval{20};
  const auto deadline = std::chrono::steady_clock::now() + patience;
  for (;;) {
    // Asked for and given back: it is never held for longer than an instant.
    const auto free = take_for_fill(qemu);
    if (free.ok()) return {};
    if (std::chrono::steady_clock::now() >= deadline)
      return make_error(ErrorKind::kBusy, "{}, still after {} s", free.error().message(),
                        std::chrono::duration_cast<std::chrono::seconds>(patience).count());
    std::this_thread::sleep_for(kInterval);
  }
}

Result<VmLock> VmLock::take_in(const char* file_name, pid_t qemu, const char* does) {
  const std::string folder = runtime_folder();
  if (folder.empty()) return VmLock(UniqueFd());
  auto file = open_file(folder + "/" + file_name, O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
  if (!file.ok()) return VmLock(UniqueFd());
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = qemu;
  lock.l_len = 1;
  if (::fcntl(file->get(), F_SETLK, &lock) == 0) return VmLock(std::move(*file));
  if (errno != EAGAIN && errno != EACCES) return VmLock(UniqueFd());
  if (::fcntl(file->get(), F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK) {
    return make_error(ErrorKind::kBusy, "process {} is {} this VM", lock.l_pid, does);
  }
  return make_error(ErrorKind::kBusy, "another process is {} this VM", does);
}

}  // namespace vmsieve
