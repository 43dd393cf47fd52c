// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>

#include <sys/types.h>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// Copies out.size() bytes at `address` of another process (process_vm_readv(2)). kVanished when the
/// process is gone, kIo when part of the range is not mapped. Reading a page that was never
/// touched maps one, and allocates it when the mapping is shared: ask first what is populated.
Result<void> read_process_memory(pid_t pid, HostVirtual address, std::span<std::byte> out);

/// Copies `bytes` to `address` of another process (process_vm_writev(2)), into pages that need not be there
/// yet. kVanished when the process is gone, kPermission when we may not, kIo when part of the range is not
/// mapped or may not be written.
Result<void> write_process_memory(pid_t pid, HostVirtual address, std::span<const std::byte> bytes);

}  // namespace vmsieve
