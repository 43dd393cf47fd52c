// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

/// What is left to be put back together, and why it was not.
struct UntidyDisk {
  std::string checkpoint;
  std::string file;
  std::string reason;
};

/// Puts disks back together of checkpoints that were removed, or never came to be: what a VM wrote to an
/// overlay goes into the image under it, by the VM's own QEMU (block-commit), or, where none has it open, by
/// qemu-img. Nothing is done as long as somebody needs the image as it is: another checkpoint, a guest that
/// was restored, a process that has it open, an image over it. Only one process does so at a time; if it is
/// killed, the next goes on. docs/disks.md.
///
/// The caller must not be connected to the monitors of the VMs in question. An error is about the store as a
/// whole, or kBusy: another process is at it.
Result<std::vector<UntidyDisk>> tidy_disks(Store& store, const ProgressFunction& progress = {});

struct Flattened {
  std::string device;
  std::string file;
  std::size_t before = 0;  ///< images in its chain
};

/// Gives a running VM disks that need no image but their topmost (block-stream): what they shared with
/// checkpoints is copied. The images under them stay as they are.
Result<std::vector<Flattened>> flatten_disks(const VmAddress& vm, const ProgressFunction& progress = {});

/// Runs qemu-img, which must be in $PATH: kUnsupported when it is not; kRefused with its own words.
Result<std::string> run_qemu_img(const std::vector<std::string>& arguments);

}  // namespace vmsieve
