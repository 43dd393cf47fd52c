// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"
#include "vmsieve/qemu/qmp.h"

namespace vmsieve {

/// A memory object (`query-memdev`) that is, or may be, main memory of the guest.
struct MemoryObject {
  std::string id;
  u64 bytes = 0;
};

/// The memory objects whose content a guest kernel uses as RAM: all of them except those that
/// belong to a device other than pc-dimm and virtio-mem (nvdimm and virtio-pmem are storage,
/// ivshmem is shared with others). Objects that nothing uses are among them; such an object has
/// no named RAM block and no guest-physical address.
///
/// Asks `query-memdev`, and every device of /machine/peripheral and /machine/peripheral-anon for its
/// `memdev` property.
Result<std::vector<MemoryObject>> read_ram_objects(QmpClient& qmp);

}  // namespace vmsieve
