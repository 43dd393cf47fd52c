// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// Owns one file descriptor and closes it; -1 means none. Movable, not copyable.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~UniqueFd() { reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset();

 private:
  int fd_ = -1;
};

/// open(2) with O_CLOEXEC added; errors name the path.
Result<UniqueFd> open_file(const std::string& path, int flags, unsigned mode = 0600);

/// Reads exactly out.size() bytes at `offset`; a shorter file is kDamaged. `name` is for the error.
Result<void> pread_exact(int fd, std::span<std::byte> out, u64 offset, std::string_view name);

/// Writes all bytes at `offset` / at the current position, over short writes and EINTR.
Result<void> pwrite_all(int fd, std::span<const std::byte> bytes, u64 offset, std::string_view name);
Result<void> write_all(int fd, std::span<const std::byte> bytes, std::string_view name);

/// Size in bytes by fstat(2).
Result<u64> file_size(int fd, std::string_view name);

/// The whole of a (small) file, /proc files included; more than `limit` bytes is kDamaged.
Result<std::string> read_text_file(const std::string& path, u64 limit);

/// An anonymous memory file (memfd_create, close-on-exec).
Result<UniqueFd> make_memfd(const std::string& name);

}  // namespace vmsieve
