// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/base/fd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>

namespace vmsieve {

void UniqueFd::reset() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

Result<UniqueFd> open_file(const std::string& path, int flags, unsigned mode) {
  int fd = -1;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return errno_error(errno, fmt::format("cannot open {}", path));
  return UniqueFd{fd};
}

Result<void> pread_exact(int fd, std::span<std::byte> out, u64 offset, std::string_view name) {
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      return errno_error(errno,
                         fmt::format("cannot read {} bytes at offset {:#x} of {}", out.size(), offset, name));
    }
    if (n == 0) {
      return make_error(ErrorKind::kDamaged, "{} ends at offset {:#x}, {} bytes at {:#x} were expected", name,
                        offset + done, out.size(), offset);
    }
    done += static_cast<std::size_t>(n);
  }
  return {};
}

Result<void> pwrite_all(int fd, std::span<const std::byte> bytes, u64 offset, std::string_view name) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n =
        ::pwrite(fd, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      return errno_error(
          errno, fmt::format("cannot write {} bytes at offset {:#x} of {}", bytes.size(), offset, name));
    }
    done += static_cast<std::size_t>(n);
  }
  return {};
}

Result<void> write_all(int fd, std::span<const std::byte> bytes, std::string_view name) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::write(fd, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error(errno, fmt::format("cannot write {} bytes to {}", bytes.size(), name));
    done += static_cast<std::size_t>(n);
  }
  return {};
}

Result<u64> file_size(int fd, std::string_view name) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return errno_error(errno, fmt::format("cannot stat {}", name));
  return static_cast<u64>(info.st_size);
}

Result<std::string> read_text_file(const std::string& path, u64 limit) {
  VMSIEVE_ASSIGN(UniqueFd fd, open_file(path, O_RDONLY));
  std::string text;
  char buffer[16384];
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error(errno, fmt::format("cannot read {}", path));
    if (n == 0) return text;
    text.append(buffer, static_cast<std::size_t>(n));
    if (text.size() > limit) {
      return make_error(ErrorKind::kDamaged, "{} is larger than the {} bytes that are read of it", path,
                        limit);
    }
  }
}

Result<UniqueFd> make_memfd(const std::string& name) {
  const int fd = ::memfd_create(name.c_str(), MFD_CLOEXEC);
  if (fd < 0) return errno_error(errno, fmt::format("cannot create the memory file {}", name));
  return UniqueFd{fd};
}

}  // namespace vmsieve
