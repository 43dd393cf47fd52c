// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/vm_lock.h"

#include <fcntl.h>
#include <cerrno>
#include <optional>
#include <thread>

#include "vmsieve/base/runtime_folder.h"

namespace vmsieve {

namespace {

constexpr char kFills[] = "fills.lock";
constexpr char kFilling[] = "bringing in the memory of";

/// None where there is no place for it.
UniqueFd open_locks(const char* file_name) {
  const std::string folder = runtime_folder();
  if (folder.empty()) return UniqueFd();
  auto file = open_file(folder + "/" + file_name, O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
  return file.ok() ? std::move(*file) : UniqueFd();
}

struct flock lock_of(pid_t qemu) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = qemu;
  lock.l_len = 1;
  return lock;
}

/// The other process that has the lock.
std::optional<pid_t> holder_of(int file, pid_t qemu) {
  struct flock lock = lock_of(qemu);
  if (::fcntl(file, F_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) return std::nullopt;
  return lock.l_pid;
}

Error busy(pid_t holder, const char* does) {
  return make_error(ErrorKind::kBusy, "process {} is {} this VM", holder, does);
}

}  // namespace

Result<VmLock> VmLock::take(pid_t qemu) { return take_in("vms.lock", qemu, "saving"); }

Result<VmLock> VmLock::take_for_watch(pid_t qemu) { return take_in("watches.lock", qemu, "watching"); }

Result<VmLock> VmLock::take_for_fill(pid_t qemu) { return take_in(kFills, qemu, kFilling); }

Result<void> VmLock::wait_for_fill(pid_t qemu, std::chrono::milliseconds patience) {
  constexpr std::chrono::milliseconds kInterval{20};
  const UniqueFd file = open_locks(kFills);
  if (!file.valid()) return {};
  const auto deadline = std::chrono::steady_clock::now() + patience;
  // Asked only, and not taken: whoever wants to fill at this moment can.
  while (const auto holder = holder_of(file.get(), qemu)) {
    if (std::chrono::steady_clock::now() >= deadline)
      return make_error(ErrorKind::kBusy, "{}, still after {} s", busy(*holder, kFilling).message(),
                        std::chrono::duration_cast<std::chrono::seconds>(patience).count());
    std::this_thread::sleep_for(kInterval);
  }
  return {};
}

Result<VmLock> VmLock::take_in(const char* file_name, pid_t qemu, const char* does) {
  UniqueFd file = open_locks(file_name);
  if (!file.valid()) return VmLock(UniqueFd());
  struct flock lock = lock_of(qemu);
  if (::fcntl(file.get(), F_SETLK, &lock) == 0) return VmLock(std::move(file));
  if (errno != EAGAIN && errno != EACCES) return VmLock(UniqueFd());
  if (const auto holder = holder_of(file.get(), qemu)) return busy(*holder, does);
  return make_error(ErrorKind::kBusy, "another process is {} this VM", does);
}

}  // namespace vmsieve
