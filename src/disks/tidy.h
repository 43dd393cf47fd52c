// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

/// What is left to be put back together, and why it was not.
struct UntidyDisk {
  std::string checkpoint;
  std::string file;
  std::string reason;
};

/// A file that was made for a checkpoint, or was given up with one, and is needed no more.
struct TidiedFile {
  std::string checkpoint;
  std::string file;
  std::string image;     ///< that has its content now; empty: it held nothing that anybody needs
  bool emptied = false;  ///< it stays, and holds nothing: its name may be on somebody's command line
};

struct Tidied {
  std::vector<TidiedFile> tidied;
  std::vector<UntidyDisk> untidy;
};

/// Puts disks back together of checkpoints that were removed, or never came to be: what a VM wrote to an
/// overlay goes into the image under it, by the VM's own QEMU (block-commit), or, where none has it open, by
/// qemu-img. Nothing is done as long as somebody needs the image as it is: another checkpoint, a guest that
/// was restored, a process that has it open, an image over it. Only one process does so at a time; if it is
/// killed, the next goes on. docs/disks.md.
///
/// The caller must not be connected to the monitors of the VMs in question. An error is about the store as a
/// whole, or kBusy: another process is at it.
Result<Tidied> tidy_disks(Store& store, const ProgressFunction& progress = {});

}  // namespace vmsieve
