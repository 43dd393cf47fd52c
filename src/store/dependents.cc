// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/dependents.h"

#include "vmsieve/store/directory_store.h"

namespace vmsieve::directory_store {

Result<Dependents> Dependents::read(const Directory& checkpoints, const std::string& except) {
  Dependents dependents;
  VMSIEVE_ASSIGN(const std::vector<std::string> names, list_directory(checkpoints));
  for (const std::string& id : names) {  // ascending
    if (!is_checkpoint_id(id) || id == except) continue;
    const auto folder = open_directory_at(checkpoints, id);
    const auto manifest = folder.ok() ? read_manifest(*folder, id) : Result<Manifest>{folder.error()};
    if (manifest.ok()) {
      for (const std::string& ancestor : manifest->ancestors) dependents.by_ancestor[ancestor].push_back(id);
      continue;
    }
    const ErrorKind kind = manifest.error().kind();
    if (kind == ErrorKind::kNotFound) continue;
    auto& first = kind == ErrorKind::kDamaged ? dependents.damaged : dependents.not_understood;
    if (!first) first = DamagedCheckpoint{id, manifest.error()};
  }
  return dependents;
}

const std::vector<std::string>& Dependents::of(const std::string& id) const {
  static const std::vector<std::string> kNone;
  const auto found = by_ancestor.find(id);
  return found == by_ancestor.end() ? kNone : found->second;
}

}  // namespace vmsieve::directory_store
