// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/image/memory_index.h"
#include "vmsieve/qemu/qmp.h"
#include "vmsieve/restore/command_line.h"
#include "vmsieve/restore/page_server.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve {

/// Why a VM with this command line cannot run before its memory is there; empty when it can, as far as the
/// command line tells. Somebody else than QEMU's own threads would need the memory (vhost-user, vfio, vDPA,
/// an RDMA device), or QEMU discards parts of it by itself (virtio-mem).
std::string why_not_lazy(const QemuCommandLine& command_line);

/// A server for the new QEMU's main memory, and what it brings.
struct LazyStart {
  std::unique_ptr<PageServer> server;
  std::vector<bool> brought;  ///< by block of the index: its pages do not go into the migration stream
};

/// To be called before QEMU gets its first byte. `index` is the reader's, or one with other fills for omitted
/// pages. kUnsupported, kPermission and kBusy when it cannot be had, and nothing is changed then: the words
/// say why. All other errors are failures of QEMU or of the host.
Result<LazyStart> start_lazy(std::shared_ptr<const CheckpointReader> reader, const MemoryIndex& index,
                             QmpClient& qmp, const PageServer::Target& target,
                             const PageServer::Options& options);

}  // namespace vmsieve
