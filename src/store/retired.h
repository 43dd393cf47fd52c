// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/store/dependents.h"
#include "vmsieve/store/directory_io.h"
#include "vmsieve/store/store.h"

/// Retired checkpoints: docs/format.md, "Removing a checkpoint". Everything that changes something is to be
/// called under the store's lock.
namespace vmsieve::directory_store {

/// What a checkpoint's folder is.
enum class FolderState {
  kCheckpoint,  ///< holds a manifest
  kKept,        ///< holds a memory object for others
  kNeither,     ///< a checkpoint being written or removed, or what is left of it
};
Result<FolderState> folder_state(const Directory& folder);

/// Makes a retired one of the checkpoint in `folder`.
Result<void> retire(const Directory& folder);

/// Removes all that a retired checkpoint does not keep: the end of retire(), after a crash. True when there
/// was anything.
Result<bool> clear_retired(const Directory& folder);

/// The ids of all retired checkpoints, ascending. Folders that cannot be opened are none.
Result<std::vector<std::string>> list_retired(const Directory& checkpoints);

/// Removes those of the `retired` that have no dependents; returns how many. None at all, if it is not known
/// who needs what.
Result<u64> remove_unneeded(const Directory& checkpoints, const std::vector<std::string>& retired,
                            const Dependents& dependents);

/// Gives the bytes of the `retired` ones' memory objects back that no dependent needs: docs/format.md,
/// "Taking bytes from retired memory objects". `store` is the one whose folder `checkpoints` is. What is in
/// use, or has a dependent that cannot be read, is left to another time, without an error.
Result<void> take_unneeded_bytes(const Store& store, const Directory& checkpoints,
                                 const std::vector<std::string>& retired, const Dependents& dependents);

}  // namespace vmsieve::directory_store
