// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include <sys/types.h>

#include "vmsieve/base/result.h"
#include "vmsieve/image/manifest.h"
#include "vmsieve/image/memory_index.h"
#include "vmsieve/qemu/qmp.h"
#include "vmsieve/qemu/ram_layout.h"

namespace vmsieve {

/// The main memory of a new QEMU that waits for its migration stream and has touched none of it: all of it
/// reads as zeros.
struct FreshMemory {
  RamLayout layout;           ///< the new QEMU's
  std::vector<bool> brought;  ///< by block of the index: is main memory, here and there
  std::vector<u32> block;     ///< by block of the index: its number in `layout`, where brought
};

/// `index` is of the checkpoint with `manifest`. kUnsupported, with the reason, when its memory cannot be put
/// there by anybody but QEMU: something is there already, or it has another size. All other errors are
/// failures of QEMU.
Result<FreshMemory> find_fresh_memory(const Manifest& manifest, const MemoryIndex& index, QmpClient& qmp,
                                      pid_t qemu);

}  // namespace vmsieve
