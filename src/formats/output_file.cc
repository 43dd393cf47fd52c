// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/output_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <cstdio>

namespace vmsieve {

namespace {

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

bool exists(const std::string& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0;
}

bool is_fifo(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISFIFO(info.st_mode);
}

Error exists_error(const std::string& path) {
  return make_error(ErrorKind::kBusy, "{} is there already", path);
}

}  // namespace

OutputFile::OutputFile(UniqueFd fd, std::string path, std::string partial, bool stream)
    : fd_(std::move(fd)), path_(std::move(path)), partial_(std::move(partial)), stream_(stream) {}

bool OutputFile::would_be_stream(const std::string& path) { return path == "-" || is_fifo(path); }

Result<std::unique_ptr<OutputFile>> OutputFile::create(const std::string& path) {
  if (path == "-") {
    const int fd = ::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) return errno_error(errno, "cannot write to standard output");
    return stream(UniqueFd(fd), "standard output");
  }
  if (is_fifo(path)) {
    VMSIEVE_ASSIGN(UniqueFd fd, open_file(path, O_WRONLY));
    return stream(std::move(fd), path);
  }
  if (exists(path)) return exists_error(path);
  const int unnamed = ::open(folder_of(path).c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (unnamed >= 0) return std::unique_ptr<OutputFile>(new OutputFile(UniqueFd(unnamed), path, "", false));
  // A file system that has no such files, or a folder that cannot be had: then this fails too.
  std::string partial = folder_of(path) + "/.vmsieve-export-XXXXXX";
  const int fd = ::mkostemp(partial.data(), O_CLOEXEC);
  if (fd < 0) return errno_error(errno, fmt::format("cannot make a file in {}", folder_of(path)));
  return std::unique_ptr<OutputFile>(new OutputFile(UniqueFd(fd), path, std::move(partial), false));
}

std::unique_ptr<OutputFile> OutputFile::stream(UniqueFd fd, std::string name) {
  return std::unique_ptr<OutputFile>(new OutputFile(std::move(fd), std::move(name), "", true));
}

OutputFile::~OutputFile() {
  if (!partial_.empty()) (void)::unlink(partial_.c_str());
}

Result<void> OutputFile::append(std::span<const std::byte> bytes) {
  VMSIEVE_TRY(write_all(fd_.get(), bytes, path_));
  appended_ += bytes.size();
  return {};
}

Result<void> OutputFile::write_at(u64 offset, std::span<const std::byte> bytes) {
  VMSIEVE_CHECK(!stream_);
  return pwrite_all(fd_.get(), bytes, offset, path_);
}

Result<void> OutputFile::finish(u64 bytes) {
  if (stream_) return {};
  if (::ftruncate(fd_.get(), static_cast<off_t>(bytes)) != 0)
    return errno_error(errno, fmt::format("cannot make {} {} bytes long", path_, bytes));
  if (::fsync(fd_.get()) != 0) return errno_error(errno, fmt::format("cannot write {}", path_));
  VMSIEVE_TRY(give_name());
  VMSIEVE_ASSIGN(const UniqueFd folder, open_file(folder_of(path_), O_RDONLY | O_DIRECTORY));
  if (::fsync(folder.get()) != 0) return errno_error(errno, fmt::format("cannot write {}", path_));
  return {};
}

Result<void> OutputFile::give_name() {
  if (partial_.empty()) {
    const std::string now = fmt::format("/proc/self/fd/{}", fd_.get());
    if (::linkat(AT_FDCWD, now.c_str(), AT_FDCWD, path_.c_str(), AT_SYMLINK_FOLLOW) == 0) return {};
    if (errno == EEXIST) return exists_error(path_);
    return errno_error(errno, fmt::format("cannot give the file its name {}", path_));
  }
  if (::renameat2(AT_FDCWD, partial_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE) != 0) {
    const int error = errno;
    if (error == EEXIST) return exists_error(path_);
    // A file system that cannot rename so.
    const bool renamed = error == EINVAL && !exists(path_) && ::rename(partial_.c_str(), path_.c_str()) == 0;
    if (!renamed) return errno_error(error, fmt::format("cannot give the file its name {}", path_));
  }
  partial_.clear();
  return {};
}

u64 OutputFile::allocated_bytes() const {
  struct stat info {};
  constexpr u64 kStatBlock = 512;
  if (stream_ || ::fstat(fd_.get(), &info) != 0) return 0;
  return static_cast<u64>(info.st_blocks) * kStatBlock;
}

}  // namespace vmsieve
