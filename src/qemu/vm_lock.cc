// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/vm_lock.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <cstdlib>

namespace vmsieve {

namespace {

/// Empty where there is no place for it.
std::string lock_folder() {
  if (::geteuid() == 0) return "/run/vmsieve";
  const char* const runtime = std::getenv("XDG_RUNTIME_DIR");
  return runtime != nullptr && *runtime == '/' ? std::string(runtime) + "/vmsieve" : "";
}

}  // namespace

Result<VmLock> VmLock::take(pid_t qemu) {
  const std::string folder = lock_folder();
  if (folder.empty()) return VmLock(UniqueFd());
  ::mkdir(folder.c_str(), 0700);
  auto file = open_file(folder + "/vms.lock", O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
  if (!file.ok()) return VmLock(UniqueFd());
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = qemu;
  lock.l_len = 1;
  if (::fcntl(file->get(), F_SETLK, &lock) == 0) return VmLock(std::move(*file));
  if (errno != EAGAIN && errno != EACCES) return VmLock(UniqueFd());
  if (::fcntl(file->get(), F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK) {
    return make_error(ErrorKind::kBusy, "process {} is saving this VM", lock.l_pid);
  }
  return Error(ErrorKind::kBusy, "another process is saving this VM");
}

}  // namespace vmsieve
