// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "vmsieve/base/result.h"
#include "vmsieve/image/disk_record.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

/// The images of a checkpoint's disks, and all files that they are backed by, are there (else kNotFound), as
/// they were (kIncompatible), and no process may write to them (kBusy); the error names the file. What a merge
/// has changed, or is about to change, is as it was. Of copies nothing is looked at: they need no image.
Result<void> check_images(const Store& store, const DiskRecord& record);

}  // namespace vmsieve
