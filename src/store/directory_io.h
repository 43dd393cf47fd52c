// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// A directory held open, with its path for messages. Everything in a store is reached relative to such a
/// descriptor, so that a path component swapped for a symbolic link leads nowhere.
struct Directory {
  UniqueFd fd;
  std::string path;

  std::string path_of(std::string_view name) const;
};

/// Opens the directory `name` in `parent`; a symbolic link in its place is refused.
Result<Directory> open_directory_at(const Directory& parent, const std::string& name);

/// Makes the directory (0700); false when it was there already.
Result<bool> make_directory_at(const Directory& parent, const std::string& name);

/// Opens a regular file in `parent`, O_NOFOLLOW and O_CLOEXEC added. A symbolic link, a pipe, a device or a
/// directory in its place is kDamaged.
Result<UniqueFd> open_regular_at(const Directory& parent, const std::string& name, int flags);

/// Makes a file (0600) that must not be there yet; `access` is O_WRONLY or O_RDONLY.
Result<UniqueFd> create_file_at(const Directory& parent, const std::string& name, int access);

/// The whole of a small regular file; more than `limit` bytes is kDamaged.
Result<std::string> read_small_file_at(const Directory& parent, const std::string& name, u64 limit);

/// Writes `temporary`, makes it durable, renames it to `name` and makes that durable: `name` holds the old
/// content (or is absent) or the new one, never a part. On failure `temporary` is removed, and so is `name`
/// when only the last step failed, unless it is to be kept.
enum class IfNotDurable {
  kRemove,
  kKeep,  ///< for what replaces another: either of them is better than none
};
Result<void> publish_file_at(const Directory& parent, const std::string& temporary, const std::string& name,
                             std::string_view content, IfNotDurable then = IfNotDurable::kRemove);

/// fsync of the directory: names made and removed in it are durable. File systems that know no such thing
/// (EINVAL, ENOTSUP) are taken at their word.
Result<void> sync_directory(const Directory& directory);

/// Removes a file; false when there was none.
Result<bool> unlink_at(const Directory& parent, const std::string& name);

/// The names in a directory, sorted, without "." and "..".
Result<std::vector<std::string>> list_directory(const Directory& directory);

/// Is something called `name` in the directory (a symbolic link counts as itself)?
Result<bool> exists_at(const Directory& parent, const std::string& name);

/// The size of a regular file, as open_regular_at() would open it.
Result<u64> regular_size_at(const Directory& parent, const std::string& name);

/// A flock(2) on an open file, dropped when this is destroyed or the process dies.
class FileLock {
 public:
  /// Takes the exclusive lock if it is free; an invalid FileLock when somebody else has it.
  static Result<FileLock> try_take(UniqueFd fd, const std::string& path);
  /// Waits for it; kBusy after `timeout_ms`.
  static Result<FileLock> take(UniqueFd fd, const std::string& path, u64 timeout_ms);
  /// Waits for a shared lock; kBusy after `timeout_ms`. Where the file system has no locks at all, the file
  /// is held open without one.
  static Result<FileLock> take_shared(UniqueFd fd, const std::string& path, u64 timeout_ms);

  FileLock() = default;
  FileLock(FileLock&&) noexcept = default;
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock() { release(); }

  bool held() const { return fd_.valid(); }
  /// The locked file; -1 when it is not held.
  int fd() const { return fd_.get(); }
  /// Unlocks by itself, not only by closing: a forked child may hold the same open file.
  void release();

 private:
  explicit FileLock(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace vmsieve
