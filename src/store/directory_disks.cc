// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "vmsieve/image/disk_record.h"
#include "vmsieve/store/directory_store.h"
#include "vmsieve/store/retired.h"

namespace vmsieve {

namespace {

using namespace directory_store;

class HeldDiskLock : public Store::DiskLock {
 public:
  explicit HeldDiskLock(FileLock lock) : lock_(std::move(lock)) {}

 private:
  FileLock lock_;
};

/// Is somebody writing this checkpoint?
Result<bool> is_being_written(const Directory& folder) {
  auto writing = open_regular_at(folder, kWriting, O_RDONLY);
  if (!writing.ok()) {
    if (writing.error().kind() == ErrorKind::kNotFound) return false;
    return writing.error();
  }
  VMSIEVE_ASSIGN(const FileLock held, FileLock::try_take(std::move(*writing), folder.path_of(kWriting)));
  return !held.held();
}

}  // namespace

Result<std::string> DirectoryStore::object_path(const std::string& id, std::string_view object) const {
  VMSIEVE_ASSIGN(const Directory folder, open_checkpoint_folder(*root_, id));
  if (!is_object_name(object))
    return make_error(ErrorKind::kNotFound, "checkpoint {}: no such object name", id);
  const std::string path = folder.path_of(object);
  VMSIEVE_TRY(regular_size_at(folder, std::string{object}));
  std::error_code error;
  const auto absolute = std::filesystem::canonical(path, error);
  if (error) return errno_error(error.value(), fmt::format("cannot find {}", path));
  return absolute.string();
}

Result<std::string> DirectoryStore::read_disks(const std::string& id) const {
  VMSIEVE_ASSIGN(const Directory folder, open_checkpoint_folder(*root_, id));
  return read_small_file_at(folder, kDisks, DiskRecord::kMaxBytes);
}

bool directory_store::stays_with_disks(std::string_view name) {
  return name == kDisks || name.starts_with("disk-");
}

Result<void> DirectoryStore::change_disks(
    const std::string& id, const std::function<Result<std::string>(const std::string& text)>& change) {
  VMSIEVE_ASSIGN(const FileLock held, lock(*root_));
  VMSIEVE_ASSIGN(const Directory folder, open_checkpoint_folder(*root_, id));
  VMSIEVE_ASSIGN(const std::string text, read_small_file_at(folder, kDisks, DiskRecord::kMaxBytes));
  VMSIEVE_ASSIGN(const std::string changed, change(text));
  if (changed == text) return {};
  // Who was killed in the midst of this left one; the lock says that nobody is at it now.
  VMSIEVE_TRY(unlink_at(folder, kDisksTemporary));
  return publish_file_at(folder, kDisksTemporary, kDisks, changed, IfNotDurable::kKeep);
}

Result<void> DirectoryStore::forget_disks(const std::string& id) {
  VMSIEVE_ASSIGN(const FileLock held, lock(*root_));
  VMSIEVE_ASSIGN(const Directory folder, open_checkpoint_folder(*root_, id));
  VMSIEVE_ASSIGN(const FolderState state, folder_state(folder));
  if (state == FolderState::kKept) {
    VMSIEVE_ASSIGN(const std::vector<std::string> names, list_directory(folder));
    for (const std::string& name : names) {
      if (name != kDisks && stays_with_disks(name)) VMSIEVE_TRY(unlink_at(folder, name));
    }
  }
  VMSIEVE_TRY(unlink_at(folder, kDisks));
  VMSIEVE_TRY(sync_directory(folder));
  VMSIEVE_ASSIGN(const bool written, is_being_written(folder));
  if (state != FolderState::kNeither || written) return {};
  VMSIEVE_ASSIGN(const Directory checkpoints, open_directory_at(*root_, kCheckpoints));
  return remove_folder(checkpoints, id);
}

Result<Store::DiskRecords> DirectoryStore::disk_records() const {
  DiskRecords records;
  const auto checkpoints = open_directory_at(*root_, kCheckpoints);
  if (!checkpoints.ok()) {
    if (checkpoints.error().kind() == ErrorKind::kNotFound) return records;
    return checkpoints.error();
  }
  VMSIEVE_ASSIGN(const std::vector<std::string> names, list_directory(*checkpoints));
  for (const std::string& id : names) {
    if (!is_checkpoint_id(id)) continue;
    const auto folder = open_directory_at(*checkpoints, id);
    if (!folder.ok()) continue;
    VMSIEVE_ASSIGN(const bool disks, exists_at(*folder, kDisks));
    if (!disks) continue;
    // In this order: one that is committed meanwhile is not taken for one that never will be.
    VMSIEVE_ASSIGN(const bool written, is_being_written(*folder));
    VMSIEVE_ASSIGN(const FolderState state, folder_state(*folder));
    if (state == FolderState::kCheckpoint) {
      records.checkpoints.push_back(id);
    } else if (!written) {
      records.forsaken.push_back(id);
    }
  }
  return records;
}

Result<std::unique_ptr<Store::DiskLock>> DirectoryStore::lock_disks() {
  int fd = -1;
  do {
    fd = ::openat(root_->fd.get(), kDisksLock, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
  } while (fd < 0 && errno == EINTR);
  const std::string path = root_->path_of(kDisksLock);
  if (fd < 0) return errno_error(errno, fmt::format("cannot open {}", path));
  VMSIEVE_ASSIGN(FileLock taken, FileLock::try_take(UniqueFd{fd}, path));
  if (!taken.held())
    return make_error(ErrorKind::kBusy, "another process puts disks of the store {} back together", name());
  return std::unique_ptr<DiskLock>{std::make_unique<HeldDiskLock>(std::move(taken))};
}

}  // namespace vmsieve
