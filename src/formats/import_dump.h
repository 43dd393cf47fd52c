// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/capture/save.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

/// Makes a checkpoint, to be looked at and not to be restored (Manifest::kDumpMode), of an ELF core that
/// ElfDumpHead::read() understands. Free pages are left out where the registers of the vCPUs, which QEMU's
/// dumps hold for x86-64, prove the kernel; of others a VMCOREINFO note tells what kernel it is, and all of
/// the memory is kept. `path`: for messages. On any error nothing remains in the store.
Result<SaveReport> import_dump(UniqueFd file, u64 file_bytes, const std::string& path, Store& store,
                               const SaveOptions& options, const ProgressFunction& progress);

}  // namespace vmsieve
