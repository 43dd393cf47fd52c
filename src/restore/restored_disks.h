// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/image/disk_record.h"
#include "vmsieve/image/manifest.h"
#include "vmsieve/restore/command_line.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

/// Where the disks of a restored guest are made.
struct RestoredDiskOptions {
  std::string folder;      ///< of the overlays; empty: beside each image (beside the store's folder: copies)
  bool temporary = false;  ///< their names are gone as soon as QEMU has opened them
  /// The QEMU is another user's, libvirt's: the files are made the images' owners', and nothing in the store
  /// is under them: copies are copied out.
  bool for_another = false;
  /// The guest takes the place of the VM that was saved: what that one wrote after the checkpoint is given
  /// up.
  bool instead = false;
  /// Where a later checkpoint stands on what would be given up, the guest is one beside, instead of an error.
  bool or_beside = false;
};

/// A fresh overlay for each disk of a checkpoint: the images themselves are only read. The files are removed
/// again when this is destroyed, unless keep() was called.
class RestoredDisks {
 public:
  /// Checks the images and makes the overlays. Nothing for a checkpoint without disks. kIncompatible and
  /// kNotFound name an image that is not as it was, kBusy one that a process writes to, or, for
  /// RestoredDiskOptions::instead, that the saved VM is still there. `number` tells clones apart; empty for a
  /// restore.
  static Result<RestoredDisks> make(Store& store, const Manifest& manifest,
                                    const RestoredDiskOptions& options, const std::string& number);
  RestoredDisks() = default;
  ~RestoredDisks();
  RestoredDisks(RestoredDisks&& other) noexcept;
  RestoredDisks& operator=(RestoredDisks&&) = delete;

  /// Puts them in the place of what the checkpointed VM had. kIncompatible names a disk that the command line
  /// does not.
  Result<void> put_into(QemuCommandLine& line, const std::string& working_directory) const;

  /// The guest does not take the saved VM's place after all.
  void stay_beside() { instead_ = false; }
  bool takes_place() const { return instead_ && !disks_.empty(); }

  /// The new QEMU has opened them. With RestoredDiskOptions::instead they take the place of the saved VM's in
  /// the checkpoint's record: as if that VM had gone on with them. When that cannot be noted they are kept
  /// all the same, as those of a guest beside it.
  Result<void> keep(Store& store);

  struct Disk {
    SavedDisk saved;
    std::string overlay;
  };
  const std::vector<Disk>& disks() const { return disks_; }
  std::vector<std::string> overlays() const;
  /// What the saved VM wrote to, and the guest has taken the place of: after keep().
  const std::vector<std::string>& abandoned() const { return abandoned_; }

 private:
  Result<void> make_all(Store& store, const std::string& id, const RestoredDiskOptions& options,
                        const std::string& number);

  std::vector<Disk> disks_;
  std::vector<std::string> abandoned_;
  std::string checkpoint_;  ///< id
  bool temporary_ = false;
  bool instead_ = false;
  bool kept_ = false;
};

}  // namespace vmsieve
