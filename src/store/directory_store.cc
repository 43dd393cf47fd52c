// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/directory_store.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "vmsieve/image/working_set.h"
#include "vmsieve/store/directory_object.h"
#include "vmsieve/store/retired.h"

namespace vmsieve {
namespace directory_store {
namespace {

constexpr u64 kLockTimeoutMs = 30000;
constexpr u64 kMaxMarkerBytes = 4096;

Result<UniqueFd> open_lock(const Directory& root) {
  int fd = -1;
  do {
    fd = ::openat(root.fd.get(), kLock, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return errno_error(errno, fmt::format("cannot open {}", root.path_of(kLock)));
  return UniqueFd{fd};
}

}  // namespace

Result<FileLock> lock(const Directory& root) {
  VMSIEVE_ASSIGN(UniqueFd fd, open_lock(root));
  return FileLock::take(std::move(fd), root.path_of(kLock), kLockTimeoutMs);
}

Result<FileLock> try_lock(const Directory& root) {
  VMSIEVE_ASSIGN(UniqueFd fd, open_lock(root));
  return FileLock::try_take(std::move(fd), root.path_of(kLock));
}

Result<void> check_marker(const Directory& root) {
  VMSIEVE_ASSIGN(const std::string text, read_small_file_at(root, kMarker, kMaxMarkerBytes));
  if (text == kMarkerText) return {};
  const std::string_view magic = kMarkerText.substr(0, kMarkerText.find(' ') + 1);
  const bool other_version = text.starts_with(magic) && text.size() > magic.size() + 1 &&
                             text.back() == '\n' &&
                             text.find_first_not_of("0123456789", magic.size()) == text.size() - 1;
  if (other_version) {
    return make_error(ErrorKind::kUnsupported, "{} is a store of version {}; this program knows version 1",
                      root.path, text.substr(magic.size(), text.size() - magic.size() - 1));
  }
  return make_error(ErrorKind::kDamaged, "{} does not hold the line that marks a store",
                    root.path_of(kMarker));
}

bool is_half_written_marker(std::string_view name) {
  const std::string prefix = fmt::format("{}.", kMarker);
  constexpr std::string_view kSuffix = ".new";
  return name.size() == prefix.size() + 16 + kSuffix.size() && name.starts_with(prefix) &&
         name.ends_with(kSuffix) && is_checkpoint_id(name.substr(prefix.size(), 16));
}

Result<Directory> open_checkpoint_folder(const Directory& root, const std::string& id) {
  if (!is_checkpoint_id(id))
    return make_error(ErrorKind::kNotFound, "store {}: no such checkpoint id", root.path);
  const auto none = [&] {
    return make_error(ErrorKind::kNotFound, "store {} has no checkpoint {}", root.path, id);
  };
  auto checkpoints = open_directory_at(root, kCheckpoints);
  if (!checkpoints.ok()) {
    return checkpoints.error().kind() == ErrorKind::kNotFound ? none() : checkpoints.error();
  }
  auto folder = open_directory_at(*checkpoints, id);
  if (!folder.ok() && folder.error().kind() == ErrorKind::kNotFound) return none();
  return folder;
}

Result<Manifest> read_manifest(const Directory& folder, const std::string& id) {
  auto text = read_small_file_at(folder, kManifest, Manifest::kMaxBytes);
  if (!text.ok()) {
    if (text.error().kind() != ErrorKind::kNotFound) return text.error();
    return make_error(ErrorKind::kNotFound, "there is no checkpoint {}: {} has no manifest", id, folder.path);
  }
  auto manifest = decode_manifest(*text);
  if (!manifest.ok()) return manifest.error().with_context(fmt::format("checkpoint {}", id));
  if (manifest->id != id) {
    return make_error(ErrorKind::kDamaged, "checkpoint {}: manifest: it is that of checkpoint {}", id,
                      manifest->id);
  }
  return manifest;
}

Result<void> remove_folder(const Directory& checkpoints, const std::string& id) {
  VMSIEVE_ASSIGN(const Directory folder, open_directory_at(checkpoints, id));
  VMSIEVE_ASSIGN(std::vector<std::string> names, list_directory(folder));
  // A power cut must not bring the manifest back without what it names.
  VMSIEVE_TRY(sync_directory(folder));
  const bool disks = std::find(names.begin(), names.end(), kDisks) != names.end();
  for (const std::string& name : names) {
    if (!disks || !stays_with_disks(name)) VMSIEVE_TRY(unlink_at(folder, name));
  }
  if (disks) return {};
  if (::unlinkat(checkpoints.fd.get(), id.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT) {
    return errno_error(errno, fmt::format("cannot remove the directory {}", folder.path));
  }
  return sync_directory(checkpoints);
}

}  // namespace directory_store

namespace {

using namespace directory_store;

/// Nothing in it but what a new file system or a crash while making a store leaves.
Result<bool> is_unused(const Directory& root) {
  VMSIEVE_ASSIGN(const std::vector<std::string> names, list_directory(root));
  return std::all_of(names.begin(), names.end(), [](const std::string& name) {
    return name == "lost+found" || is_half_written_marker(name);
  });
}

/// mkdir -p, 0700, each new name durable.
Result<void> make_directories(const std::string& path) {
  for (std::size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
    const std::string part = path.substr(0, end);
    if (::mkdir(part.c_str(), 0700) == 0) {
      const std::size_t slash = part.find_last_of('/');
      const std::string above = slash == std::string::npos ? "." : slash == 0 ? "/" : part.substr(0, slash);
      VMSIEVE_ASSIGN(UniqueFd fd, open_file(above, O_RDONLY | O_DIRECTORY));
      VMSIEVE_TRY(sync_directory(Directory{std::move(fd), above}));
    } else if (errno == ENOENT) {  // /proc: what is above is there, but takes no folders
      return make_error(ErrorKind::kIo, "no directory {} can be made on that file system", part);
    } else if (errno != EEXIST) {
      return errno_error(errno, fmt::format("cannot make the directory {}", part));
    }
    if (end == std::string::npos) return {};
  }
}

Result<void> write_marker(const Directory& root) {
  // A name of its own: two programs may be making the same store.
  VMSIEVE_ASSIGN(const std::string random, new_checkpoint_id());
  return publish_file_at(root, fmt::format("{}.{}.new", kMarker, random), kMarker, kMarkerText);
}

Result<Directory> open_root(const std::string& path, bool create) {
  if (path.empty()) return make_error(ErrorKind::kUsage, "the path of the store is empty");
  auto fd = open_file(path, O_RDONLY | O_DIRECTORY);
  if (!fd.ok() && fd.error().kind() == ErrorKind::kNotFound) {
    if (!create) return make_error(ErrorKind::kNotFound, "there is no store {}", path);
    VMSIEVE_TRY(make_directories(path));
    fd = open_file(path, O_RDONLY | O_DIRECTORY);
  }
  if (!fd.ok()) return fd.error().with_context(fmt::format("store {}", path));
  return Directory{std::move(*fd), path};
}

}  // namespace

Result<std::unique_ptr<DirectoryStore>> DirectoryStore::open_path(const std::string& path, bool create) {
  VMSIEVE_ASSIGN(Directory opened, open_root(path, create));
  auto root = std::make_shared<const Directory>(std::move(opened));
  auto marked = check_marker(*root);
  if (!marked.ok() && marked.error().kind() == ErrorKind::kNotFound) {
    VMSIEVE_ASSIGN(const bool unused, is_unused(*root));
    if (!unused) {
      return make_error(
          ErrorKind::kUsage,
          "{} is no store and holds other files: nothing is written there; give an empty or a new "
          "directory",
          path);
    }
    if (!create) return make_error(ErrorKind::kNotFound, "{} is an empty directory, no store", path);
    const auto written = write_marker(*root);
    marked = check_marker(*root);
    // Somebody else may have made the store meanwhile, and swept our half-written marker away.
    if (!marked.ok()) VMSIEVE_TRY(written);
  }
  VMSIEVE_TRY(marked);
  return std::unique_ptr<DirectoryStore>{new DirectoryStore(std::move(root))};
}

Result<std::unique_ptr<CheckpointWriter>> DirectoryStore::begin() {
  VMSIEVE_ASSIGN(const std::string id, new_checkpoint_id());
  return begin_as(id);
}

Result<std::unique_ptr<CheckpointWriter>> DirectoryStore::begin_as(const std::string& id) {
  return begin_checkpoint(root_, id);
}

Result<Manifest> DirectoryStore::manifest(const std::string& id) const {
  VMSIEVE_ASSIGN(const Directory folder, open_checkpoint_folder(*root_, id));
  return read_manifest(folder, id);
}

Result<std::unique_ptr<ObjectReader>> DirectoryStore::open(const std::string& id,
                                                           std::string_view object) const {
  VMSIEVE_ASSIGN(const Directory folder, open_checkpoint_folder(*root_, id));
  if (!is_object_name(object))
    return make_error(ErrorKind::kNotFound, "checkpoint {}: no such object name", id);
  VMSIEVE_ASSIGN(const FolderState state, folder_state(folder));
  const bool kept = state == FolderState::kKept && object == kMemory;
  if (state != FolderState::kCheckpoint && !kept) {
    return make_error(ErrorKind::kNotFound, "there is no checkpoint {}: {} has no manifest", id, folder.path);
  }
  return DirectoryObjectReader::open(folder, std::string{object});
}

Result<std::string> DirectoryStore::read_hint(const std::string& id) const {
  VMSIEVE_ASSIGN(const Directory folder, open_checkpoint_folder(*root_, id));
  return read_small_file_at(folder, kHint, kMaxWorkingSetBytes);
}

// Under the lock: a removal must not find a file that was not there when it listed the folder.
Result<void> DirectoryStore::write_hint(const std::string& id, std::string_view text) {
  VMSIEVE_ASSIGN(const FileLock held, lock(*root_));
  VMSIEVE_ASSIGN(const Directory folder, open_checkpoint_folder(*root_, id));
  VMSIEVE_ASSIGN(const FolderState state, folder_state(folder));
  if (state != FolderState::kCheckpoint)
    return make_error(ErrorKind::kNotFound, "there is no checkpoint {}: {} has no manifest", id, folder.path);
  return publish_file_at(folder, kHintTemporary, kHint, text);
}

}  // namespace vmsieve
