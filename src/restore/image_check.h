// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"
#include "vmsieve/image/disk_record.h"
#include "vmsieve/store/checkpoint_reader.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

/// The images of a checkpoint's disks, and all files that they are backed by, are there (else kNotFound), as
/// they were (kIncompatible), and no process may write to them (kBusy); the error names the file. What a
/// merge has changed, or is about to change, is as it was. Of copies nothing is looked at: they need no
/// image.
Result<void> check_images(const Store& store, const DiskRecord& record);

/// The copies of its disks in the store hold what was saved (else kDamaged, naming the object): wholly, or,
/// if not `wholly`, those of at most kQuicklyRead bytes; of larger ones size and header.
inline constexpr u64 kQuicklyRead = kGiB;
Result<void> check_copies(const Store& store, const CheckpointReader& checkpoint, bool wholly);

}  // namespace vmsieve
