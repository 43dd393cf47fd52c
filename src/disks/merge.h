// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <string>

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/disks/disk_needs.h"
#include "vmsieve/image/disk_record.h"
#include "vmsieve/qemu/qmp.h"

/// The steps that are the same whoever merges.
namespace vmsieve::tidying {

inline constexpr std::chrono::milliseconds kCommandPatience{30000};
/// For what is the case a moment later by itself.
inline constexpr int kAttempts = 4;
inline constexpr std::chrono::milliseconds kBetweenAttempts{250};

/// An overlay whose content goes, or went, into the image under it.
struct Merge {
  DiskNeeds& needs;
  DiskRecord& record;     ///< that tells of the overlay; changes as the merge goes on
  const SavedDisk& disk;  ///< the overlay; `format` is that of the image under it now
  const ProgressFunction& progress;
};

/// Before the first byte is merged: nobody has written to what is not to have changed (else kBusy), and from
/// now on the image under the overlay need not be as it was.
Result<void> begin(const Merge& merge, const std::string& image);

/// A command that begins a commit. A file that was closed a moment ago may be locked still (a killed QEMU's,
/// or QEMU's own of a job before), so what is refused is tried again.
Result<void> begin_commit(QmpClient& qmp, const char* command, const QmpClient::Json& arguments);

/// Another backing file's name is about to be written into what is over the overlay.
Result<void> note_renamed(const Merge& merge);

/// Of what note_renamed() noted in the record: durable, and with its new print in all records.
Result<void> take_prints_anew(DiskNeeds& needs, DiskRecord& record);

/// Notes that all is in the image.
Result<void> mark_merged(const Merge& merge);

/// What is in the overlay is in the image under it as well: makes that durable, and removes the overlay.
/// Checkpoints whose disk it was have the image from now on, where nobody has made files over the overlay
/// (else kBusy).
Result<void> remove_merged(const Merge& merge);

}  // namespace vmsieve::tidying
