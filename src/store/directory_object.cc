// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/directory_object.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace vmsieve {
namespace {

/// How much may wait in the page cache, where O_DIRECT does not work.
constexpr u64 kWriteBackWindow = 32 * kMiB;

/// A sweep holds an object for as long as making holes takes.
constexpr u64 kSharedLockTimeoutMs = 30000;

}  // namespace

Result<std::unique_ptr<ObjectWriter>> DirectoryObjectWriter::make(const Directory& folder,
                                                                  const std::string& name,
                                                                  std::shared_ptr<ObjectProgress> progress) {
  VMSIEVE_ASSIGN(UniqueFd fd, create_file_at(folder, name, O_WRONLY));
  auto* writer = new DirectoryObjectWriter(std::move(fd), folder.path_of(name), std::move(progress));
  std::unique_ptr<ObjectWriter> result{writer};
  if (!writer->staging_) {
    return make_error(ErrorKind::kIo, "no memory for {} bytes of write buffer", kStagingBytes);
  }
  return result;
}

DirectoryObjectWriter::DirectoryObjectWriter(UniqueFd fd, std::string path,
                                             std::shared_ptr<ObjectProgress> progress)
    : fd_(std::move(fd)), path_(std::move(path)), progress_(std::move(progress)) {
  staging_.reset(static_cast<std::byte*>(std::aligned_alloc(kDirectAlignment, kStagingBytes)));
  // Asked for after the file was made: open(2) with O_CREAT | O_DIRECT fails where direct I/O does not work,
  // but leaves the file behind.
  const int flags = ::fcntl(fd_.get(), F_GETFL);
  direct_ = flags >= 0 && ::fcntl(fd_.get(), F_SETFL, flags | O_DIRECT) == 0;
}

Error DirectoryObjectWriter::fail(Error error) {
  failed_ = error;
  return error;
}

bool DirectoryObjectWriter::stop_direct() {
  if (!direct_) return false;
  const int flags = ::fcntl(fd_.get(), F_GETFL);
  direct_ = flags < 0 || ::fcntl(fd_.get(), F_SETFL, flags & ~O_DIRECT) != 0;
  return !direct_;
}

Result<void> DirectoryObjectWriter::write_out(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(written_));
    if (n < 0 && errno == EINTR) continue;
    // The disk wants more than kDirectAlignment, or a short write left us between two of its blocks.
    if (n < 0 && errno == EINVAL && stop_direct()) continue;
    if (n <= 0) {
      return fail(errno_error(
          n < 0 ? errno : ENOSPC,
          fmt::format("cannot write {} bytes at offset {:#x} of {}", bytes.size(), written_, path_)));
    }
    written_ += static_cast<u64>(n);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Result<void> DirectoryObjectWriter::push_out_of_page_cache() {
  if (direct_) return {};
  // Starts writing what is new, waits for what is a window old, and drops that: memory stays bounded and the
  // fdatasync at the end short.
  (void)::sync_file_range(fd_.get(), static_cast<off_t>(pushed_), 0, SYNC_FILE_RANGE_WRITE);
  if (written_ - pushed_ < kWriteBackWindow) return {};
  const u64 bytes = round_down(written_ - pushed_ - kWriteBackWindow / 2, kDirectAlignment);
  constexpr unsigned kWait = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  // A failure here must not be lost: the kernel reports a failed write-back once per descriptor.
  if (::sync_file_range(fd_.get(), static_cast<off_t>(pushed_), static_cast<off_t>(bytes), kWait) != 0 &&
      errno != ENOSYS && errno != EINVAL && errno != ESPIPE) {
    return fail(errno_error(
        errno, fmt::format("cannot write back {} bytes at offset {:#x} of {}", bytes, pushed_, path_)));
  }
  (void)::posix_fadvise(fd_.get(), static_cast<off_t>(pushed_), static_cast<off_t>(bytes),
                        POSIX_FADV_DONTNEED);
  pushed_ += bytes;
  return {};
}

Result<void> DirectoryObjectWriter::flush() {
  VMSIEVE_TRY(write_out({staging_.get(), staged_}));
  staged_ = 0;
  return push_out_of_page_cache();
}

Result<void> DirectoryObjectWriter::append(std::span<const std::byte> bytes) {
  if (failed_) return *failed_;
  if (progress_->finished) return make_error(ErrorKind::kUsage, "{} is finished already", path_);
  while (!bytes.empty()) {
    const u64 part = std::min<u64>(bytes.size(), kStagingBytes - staged_);
    std::memcpy(staging_.get() + staged_, bytes.data(), part);
    staged_ += part;
    bytes = bytes.subspan(part);
    if (staged_ == kStagingBytes) VMSIEVE_TRY(flush());
  }
  return {};
}

Result<void> DirectoryObjectWriter::finish() {
  if (failed_) return *failed_;
  if (progress_->finished) return make_error(ErrorKind::kUsage, "{} is finished already", path_);
  const u64 whole = round_down(staged_, kDirectAlignment);
  VMSIEVE_TRY(write_out({staging_.get(), whole}));
  if (whole < staged_) {
    (void)stop_direct();
    VMSIEVE_TRY(write_out({staging_.get() + whole, staged_ - whole}));
  }
  staged_ = 0;
  if (::fdatasync(fd_.get()) != 0) {
    return fail(errno_error(errno, fmt::format("cannot make {} durable", path_)));
  }
  (void)::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
  progress_->bytes = written_;
  progress_->finished = true;
  fd_.reset();
  staging_.reset();
  return {};
}

Result<std::unique_ptr<ObjectReader>> DirectoryObjectReader::open(const Directory& folder,
                                                                  const std::string& name) {
  VMSIEVE_ASSIGN(UniqueFd fd, open_regular_at(folder, name, O_RDONLY));
  std::string path = folder.path_of(name);
  VMSIEVE_ASSIGN(FileLock file, FileLock::take_shared(std::move(fd), path, kSharedLockTimeoutMs));
  VMSIEVE_ASSIGN(const u64 size, file_size(file.fd(), path));
  return std::unique_ptr<ObjectReader>{new DirectoryObjectReader(std::move(file), std::move(path), size)};
}

Result<void> DirectoryObjectReader::read(u64 offset, std::span<std::byte> out) const {
  if (offset > size_ || out.size() > size_ - offset) {
    return make_error(ErrorKind::kDamaged, "{} has {:#x} bytes, {:#x} bytes at offset {:#x} were expected",
                      path_, size_, out.size(), offset);
  }
  return pread_exact(file_.fd(), out, offset, path_);
}

}  // namespace vmsieve
