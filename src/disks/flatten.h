// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/qemu/process.h"

namespace vmsieve {

struct Flattened {
  std::string device;
  std::string file;
  std::size_t before = 0;  ///< images in its chain
};

/// Gives a running VM disks that need no image but their topmost (block-stream): what they shared with
/// checkpoints is copied. The images under them stay as they are. kUnsupported for a domain of libvirt's,
/// kBusy while another process has the VM; an error of QEMU's names the disk.
Result<std::vector<Flattened>> flatten_disks(const VmAddress& vm, const ProgressFunction& progress = {});

}  // namespace vmsieve
