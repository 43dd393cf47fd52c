// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/store/directory_io.h"
#include "vmsieve/store/store.h"

namespace vmsieve::directory_store {

/// Which checkpoints of a store need the memory objects of which others: docs/format.md, "Removing a
/// checkpoint". Good for as long as the store's lock is held, under which it must be read.
struct Dependents {
  /// Reads the manifests of all checkpoints but `except` (empty: of all).
  static Result<Dependents> read(const Directory& checkpoints, const std::string& except);

  /// The checkpoints that have `id` among their ancestors, ascending.
  const std::vector<std::string>& of(const std::string& id) const;

  /// May something be taken away because nobody is known to need it?
  bool complete() const { return !not_understood && !damaged; }

  std::map<std::string, std::vector<std::string>> by_ancestor;
  /// The first checkpoint whose manifest this program cannot read or understand: it may need anything.
  std::optional<DamagedCheckpoint> not_understood;
  /// The first one whose manifest is damaged: it cannot be restored, but perhaps be repaired.
  std::optional<DamagedCheckpoint> damaged;
};

}  // namespace vmsieve::directory_store
