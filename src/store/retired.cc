// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/retired.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "vmsieve/store/directory_store.h"

namespace vmsieve::directory_store {

Result<FolderState> folder_state(const Directory& folder) {
  // In this order: a manifest that is renamed meanwhile is found under its new name.
  VMSIEVE_ASSIGN(const bool committed, exists_at(folder, kManifest));
  if (committed) return FolderState::kCheckpoint;
  VMSIEVE_ASSIGN(const bool retired, exists_at(folder, kRetired));
  return retired ? FolderState::kKept : FolderState::kNeither;
}

Result<void> retire(const Directory& folder) {
  if (::renameat(folder.fd.get(), kManifest, folder.fd.get(), kRetired) != 0) {
    return errno_error(errno, fmt::format("cannot rename {} to {}", folder.path_of(kManifest), kRetired));
  }
  // ---- the checkpoint does not exist any more; what follows a sweep would do as well ----
  VMSIEVE_TRY(sync_directory(folder));
  VMSIEVE_TRY(clear_retired(folder));
  return {};
}

Result<bool> clear_retired(const Directory& folder) {
  VMSIEVE_ASSIGN(const std::vector<std::string> names, list_directory(folder));
  const bool disks = std::find(names.begin(), names.end(), kDisks) != names.end();
  bool any = false;
  for (const std::string& name : names) {
    if (name == kMemory || name == kRetired || name == kPunched) continue;
    if (disks && stays_with_disks(name)) continue;
    // Once, before the first: a power cut must not bring the manifest back without what it names.
    if (!any) VMSIEVE_TRY(sync_directory(folder));
    any = true;
    VMSIEVE_TRY(unlink_at(folder, name));
  }
  return any;
}

Result<std::vector<std::string>> list_retired(const Directory& checkpoints) {
  VMSIEVE_ASSIGN(const std::vector<std::string> names, list_directory(checkpoints));
  std::vector<std::string> retired;
  for (const std::string& id : names) {
    if (!is_checkpoint_id(id)) continue;
    const auto folder = open_directory_at(checkpoints, id);
    if (!folder.ok()) continue;
    VMSIEVE_ASSIGN(const FolderState state, folder_state(*folder));
    if (state == FolderState::kKept) retired.push_back(id);
  }
  return retired;
}

Result<u64> remove_unneeded(const Directory& checkpoints, const std::vector<std::string>& retired,
                            const Dependents& dependents) {
  u64 removed = 0;
  if (!dependents.complete()) return removed;
  for (const std::string& id : retired) {
    if (!dependents.of(id).empty()) continue;
    VMSIEVE_ASSIGN(const Directory folder, open_directory_at(checkpoints, id));
    VMSIEVE_TRY(unlink_at(folder, kRetired));
    // ---- what follows a sweep would do as well ----
    VMSIEVE_TRY(remove_folder(checkpoints, id));
    ++removed;
  }
  return removed;
}

}  // namespace vmsieve::directory_store
