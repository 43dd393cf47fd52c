// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/directory_io.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

Result<UniqueFd> open_at(const Directory& parent, const std::string& name, int flags, unsigned mode) {
  int fd = -1;
  do {
    fd = ::openat(parent.fd.get(), name.c_str(), flags | O_NOFOLLOW | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  if (fd >= 0) return UniqueFd{fd};
  const int cause = errno;
  const std::string path = parent.path_of(name);
  if (cause == ELOOP)
    return make_error(ErrorKind::kDamaged, "{} is a symbolic link, which is not followed", path);
  if (cause == ENOTDIR) return make_error(ErrorKind::kDamaged, "{} is no directory", path);
  return errno_error(cause, fmt::format("cannot {} {}", (flags & O_CREAT) != 0 ? "make" : "open", path));
}

/// `operation`: LOCK_EX or LOCK_SH. 0, EWOULDBLOCK when another one stands in the way, or what else went
/// wrong.
int try_lock(int fd, int operation) {
  int result = 0;
  do {
    result = ::flock(fd, operation | LOCK_NB);
  } while (result != 0 && errno == EINTR);
  return result == 0 ? 0 : errno;
}

/// As try_lock(), but waits. Polled: flock(2) itself waits without end, behind a stopped process for example.
int wait_for_lock(int fd, int operation, u64 timeout_ms) {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  for (;;) {
    const int cause = try_lock(fd, operation);
    if (cause != EWOULDBLOCK || Clock::now() >= deadline) return cause;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

Error lock_error(int cause, const std::string& path, u64 timeout_ms) {
  if (cause != EWOULDBLOCK) return errno_error(cause, fmt::format("cannot lock {}", path));
  return make_error(ErrorKind::kBusy, "{} has been locked by another process for {} ms", path, timeout_ms);
}

}  // namespace

std::string Directory::path_of(std::string_view name) const { return fmt::format("{}/{}", path, name); }

Result<Directory> open_directory_at(const Directory& parent, const std::string& name) {
  // With O_NOFOLLOW | O_DIRECTORY a symbolic link gives ENOTDIR.
  VMSIEVE_ASSIGN(UniqueFd fd, open_at(parent, name, O_RDONLY | O_DIRECTORY, 0));
  return Directory{std::move(fd), parent.path_of(name)};
}

Result<bool> make_directory_at(const Directory& parent, const std::string& name) {
  if (::mkdirat(parent.fd.get(), name.c_str(), 0700) == 0) return true;
  if (errno == EEXIST) return false;
  return errno_error(errno, fmt::format("cannot make the directory {}", parent.path_of(name)));
}

Result<UniqueFd> open_regular_at(const Directory& parent, const std::string& name, int flags) {
  // O_NONBLOCK: opening a pipe that somebody put there must not wait for its other end.
  VMSIEVE_ASSIGN(UniqueFd fd, open_at(parent, name, flags | O_NONBLOCK, 0));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) {
    return errno_error(errno, fmt::format("cannot stat {}", parent.path_of(name)));
  }
  if (!S_ISREG(info.st_mode)) {
    return make_error(ErrorKind::kDamaged, "{} is no regular file", parent.path_of(name));
  }
  return fd;
}

Result<UniqueFd> create_file_at(const Directory& parent, const std::string& name, int access) {
  return open_at(parent, name, access | O_CREAT | O_EXCL, 0600);
}

Result<std::string> read_small_file_at(const Directory& parent, const std::string& name, u64 limit) {
  const std::string path = parent.path_of(name);
  VMSIEVE_ASSIGN(const UniqueFd fd, open_regular_at(parent, name, O_RDONLY));
  VMSIEVE_ASSIGN(const u64 size, file_size(fd.get(), path));
  if (size > limit) {
    return make_error(ErrorKind::kDamaged, "{} has {} bytes, more than the {} allowed", path, size, limit);
  }
  std::string text(size, '\0');
  VMSIEVE_TRY(pread_exact(fd.get(), std::as_writable_bytes(std::span<char>{text}), 0, path));
  return text;
}

Result<void> publish_file_at(const Directory& parent, const std::string& temporary, const std::string& name,
                             std::string_view content, IfNotDurable then) {
  const auto give_up = [&parent](const std::string& leftover, Error error) {
    (void)unlink_at(parent, leftover);
    return error;
  };
  {
    VMSIEVE_ASSIGN(const UniqueFd fd, create_file_at(parent, temporary, O_WRONLY));
    const std::string path = parent.path_of(temporary);
    auto written = write_all(fd.get(), as_byte_span(content), path);
    if (!written.ok()) return give_up(temporary, written.error());
    if (::fsync(fd.get()) != 0) {
      return give_up(temporary, errno_error(errno, fmt::format("cannot make {} durable", path)));
    }
  }
  if (::renameat(parent.fd.get(), temporary.c_str(), parent.fd.get(), name.c_str()) != 0) {
    return give_up(temporary, errno_error(errno, fmt::format("cannot rename {} to {}",
                                                             parent.path_of(temporary), name)));
  }
  if (auto synced = sync_directory(parent); !synced.ok()) {
    if (then == IfNotDurable::kKeep) return synced.error();
    return give_up(name, synced.error());
  }
  return {};
}

Result<void> sync_directory(const Directory& directory) {
  if (::fsync(directory.fd.get()) == 0 || errno == EINVAL || errno == ENOTSUP) return {};
  return errno_error(errno, fmt::format("cannot make the directory {} durable", directory.path));
}

Result<bool> unlink_at(const Directory& parent, const std::string& name) {
  if (::unlinkat(parent.fd.get(), name.c_str(), 0) == 0) return true;
  if (errno == ENOENT) return false;
  return errno_error(errno, fmt::format("cannot remove {}", parent.path_of(name)));
}

Result<std::vector<std::string>> list_directory(const Directory& directory) {
  // fdopendir() takes the descriptor over, and a duplicate would share its position.
  VMSIEVE_ASSIGN(UniqueFd fd, open_at(directory, ".", O_RDONLY | O_DIRECTORY, 0));
  const std::unique_ptr<DIR, int (*)(DIR*)> stream{::fdopendir(fd.get()), &::closedir};
  if (!stream) return errno_error(errno, fmt::format("cannot list {}", directory.path));
  (void)fd.release();
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(stream.get());
    if (entry == nullptr) break;
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  if (errno != 0) return errno_error(errno, fmt::format("cannot list {}", directory.path));
  std::sort(names.begin(), names.end());
  return names;
}

Result<bool> exists_at(const Directory& parent, const std::string& name) {
  struct stat info {};
  if (::fstatat(parent.fd.get(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0) return true;
  if (errno == ENOENT) return false;
  return errno_error(errno, fmt::format("cannot stat {}", parent.path_of(name)));
}

Result<u64> regular_size_at(const Directory& parent, const std::string& name) {
  VMSIEVE_ASSIGN(const UniqueFd fd, open_regular_at(parent, name, O_RDONLY));
  return file_size(fd.get(), parent.path_of(name));
}

Result<FileLock> FileLock::try_take(UniqueFd fd, const std::string& path) {
  const int cause = try_lock(fd.get(), LOCK_EX);
  if (cause == 0) return FileLock{std::move(fd)};
  if (cause == EWOULDBLOCK) return FileLock{};
  return lock_error(cause, path, 0);
}

Result<FileLock> FileLock::take(UniqueFd fd, const std::string& path, u64 timeout_ms) {
  const int cause = wait_for_lock(fd.get(), LOCK_EX, timeout_ms);
  if (cause != 0) return lock_error(cause, path, timeout_ms);
  return FileLock{std::move(fd)};
}

Result<FileLock> FileLock::take_shared(UniqueFd fd, const std::string& path, u64 timeout_ms) {
  const int cause = wait_for_lock(fd.get(), LOCK_SH, timeout_ms);
  // ENOLCK: NFS whose server runs no lock service.
  const bool no_locks = cause == ENOLCK || cause == EOPNOTSUPP || cause == ENOSYS || cause == EINVAL;
  if (cause != 0 && !no_locks) return lock_error(cause, path, timeout_ms);
  return FileLock{std::move(fd)};
}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  if (this != &other) {
    release();
    fd_ = std::move(other.fd_);
  }
  return *this;
}

void FileLock::release() {
  if (!fd_.valid()) return;
  (void)::flock(fd_.get(), LOCK_UN);
  fd_.reset();
}

}  // namespace vmsieve
