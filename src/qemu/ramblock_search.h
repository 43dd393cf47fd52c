// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"
#include "vmsieve/qemu/proc_maps.h"

namespace vmsieve {

/// A RAM block whose name and sizes are known, and perhaps its address.
struct RamblockTarget {
  std::string name;
  u64 used_bytes = 0;
  u64 total_bytes = 0;
  std::optional<HostVirtual> host;
};

/// Fills in `host` of every target that lacks it, from QEMU's own RAMBlock structures
/// (include/exec/ramblock.h: host, used_length and max_length stand shortly before idstr, a
/// NUL-padded char[256]), which are searched for by name in the process's heap and other private
/// memory.
///
/// Where the three members stand is not assumed but measured: the distances must give the known
/// address of every block that has one and the printed sizes of all. At least one target must
/// have its address. kUnsupported, naming a block, when it cannot be found or more than one address
/// would do. Reads no guest RAM of the blocks that are known, and at most 1 GiB in all.
Result<void> find_ramblock_hosts(pid_t pid, const std::vector<Vma>& maps,
                                 std::vector<RamblockTarget>& targets);

}  // namespace vmsieve
