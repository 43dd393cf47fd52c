// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>

#include <algorithm>
#include <optional>

#include "vmsieve/store/catalog.h"
#include "vmsieve/store/directory_store.h"
#include "vmsieve/store/retired.h"

namespace vmsieve {
namespace {

using namespace directory_store;

struct Swept {
  bool leftover = false;  ///< something was removed
  bool retired = false;   ///< it is a retired checkpoint
};

/// Removes what is left over in the folder of `id`, if its writer is dead. Under the store's lock.
Result<Swept> sweep_folder(const Directory& checkpoints, const std::string& id, Sweep what) {
  VMSIEVE_ASSIGN(const Directory folder, open_directory_at(checkpoints, id));
  auto writing = open_regular_at(folder, kWriting, O_RDONLY);
  const bool written = writing.ok();
  if (written) {
    VMSIEVE_ASSIGN(const FileLock held, FileLock::try_take(std::move(*writing), folder.path_of(kWriting)));
    if (!held.held()) return Swept{};
  } else if (writing.error().kind() != ErrorKind::kNotFound) {
    return writing.error();
  }
  VMSIEVE_ASSIGN(const FolderState state, folder_state(folder));
  if (state == FolderState::kNeither) {
    if (what == Sweep::kSafe && !written) return Swept{};
    VMSIEVE_ASSIGN(const std::vector<std::string> names, list_directory(folder));
    const bool disks = std::find(names.begin(), names.end(), kDisks) != names.end();
    if (disks && std::all_of(names.begin(), names.end(), stays_with_disks)) return Swept{};
    VMSIEVE_TRY(remove_folder(checkpoints, id));
    return Swept{.leftover = true};
  }
  if (state == FolderState::kKept) {
    VMSIEVE_ASSIGN(const bool any, clear_retired(folder));
    return Swept{.leftover = any, .retired = true};
  }
  VMSIEVE_ASSIGN(const bool lock_left, unlink_at(folder, kWriting));
  VMSIEVE_ASSIGN(const bool manifest_left, unlink_at(folder, kManifestTemporary));
  VMSIEVE_ASSIGN(const bool hint_left, unlink_at(folder, kHintTemporary));
  VMSIEVE_ASSIGN(const bool disks_left, unlink_at(folder, kDisksTemporary));
  return Swept{.leftover = lock_left || manifest_left || hint_left || disks_left};
}

/// Removes the retired checkpoints that nobody needs, and takes from the others what nobody needs. Returns
/// how many were removed.
Result<u64> sweep_retired(const Store& store, const Directory& checkpoints,
                          const std::vector<std::string>& retired) {
  // Without any, no manifest is read.
  if (retired.empty()) return u64{0};
  VMSIEVE_ASSIGN(const Dependents dependents, Dependents::read(checkpoints, ""));
  VMSIEVE_ASSIGN(const u64 removed, remove_unneeded(checkpoints, retired, dependents));
  VMSIEVE_TRY(take_unneeded_bytes(store, checkpoints, retired, dependents));
  return removed;
}

}  // namespace

Result<Removal> DirectoryStore::remove(const std::string& id) {
  VMSIEVE_ASSIGN(const FileLock held, lock(*root_));
  VMSIEVE_ASSIGN(const Directory folder, open_checkpoint_folder(*root_, id));
  VMSIEVE_ASSIGN(const FolderState state, folder_state(folder));
  if (state != FolderState::kCheckpoint) {
    return make_error(ErrorKind::kNotFound, "there is no checkpoint {}: {} has no manifest", id, folder.path);
  }
  VMSIEVE_ASSIGN(const Directory checkpoints, open_directory_at(*root_, kCheckpoints));
  VMSIEVE_ASSIGN(const Dependents dependents, Dependents::read(checkpoints, id));
  if (const auto& other = dependents.not_understood) {
    return make_error(ErrorKind::kBusy, "cannot tell whether checkpoint {} needs {}: {}", other->id, id,
                      other->error.message());
  }
  if (dependents.of(id).empty()) {
    VMSIEVE_TRY(unlink_at(folder, kManifest));
    // ---- the checkpoint does not exist any more; what follows a sweep would do as well ----
    VMSIEVE_TRY(remove_folder(checkpoints, id));
  } else {
    VMSIEVE_TRY(retire(folder));
  }
  // What was asked for is done. What this checkpoint alone needed is housekeeping: if it fails, a sweep goes
  // on.
  if (const auto retired = list_retired(checkpoints); retired.ok()) {
    (void)remove_unneeded(checkpoints, *retired, dependents);
  }
  return Removal{dependents.of(id)};
}

Result<u64> DirectoryStore::sweep(Sweep what) {
  VMSIEVE_ASSIGN(const FileLock held, lock(*root_));
  u64 leftovers = 0;
  VMSIEVE_ASSIGN(const std::vector<std::string> root_names, list_directory(*root_));
  for (const std::string& name : root_names) {
    if (!is_half_written_marker(name) && name != kCatalogTemporary) continue;
    const auto removed = unlink_at(*root_, name);
    if (!removed.ok() && name != kCatalogTemporary) return removed.error();
    leftovers += removed.ok() && *removed ? 1 : 0;
  }
  const auto checkpoints = open_directory_at(*root_, kCheckpoints);
  if (!checkpoints.ok()) {
    if (checkpoints.error().kind() == ErrorKind::kNotFound) return leftovers;
    return checkpoints.error();
  }
  VMSIEVE_ASSIGN(const std::vector<std::string> names, list_directory(*checkpoints));
  Catalog catalog = Catalog::read(*root_);
  std::vector<std::string> unknown;
  std::vector<std::string> retired;
  std::optional<Error> first_error;
  for (const std::string& id : names) {
    if (!is_checkpoint_id(id)) continue;
    const Catalog::Entry* known = catalog.unchanged(*checkpoints, id);
    if (known != nullptr && known->settled) continue;
    const auto swept = sweep_folder(*checkpoints, id, what);
    if (!swept.ok()) {
      if (!first_error) first_error = swept.error();
      continue;
    }
    leftovers += swept->leftover ? 1 : 0;
    if (swept->retired) retired.push_back(id);
    if (known == nullptr && unknown.size() < kMostAddedAtOnce && stamped_entry(*checkpoints, id))
      unknown.push_back(id);
  }
  // Whoever comes next need not open all those folders again.
  add_to_catalog(*root_, *checkpoints, std::move(catalog), std::move(unknown));
  const auto removed = sweep_retired(*this, *checkpoints, retired);
  if (removed.ok()) leftovers += *removed;
  if (!removed.ok() && !first_error) first_error = removed.error();
  if (first_error) return *first_error;
  return leftovers;
}

}  // namespace vmsieve
