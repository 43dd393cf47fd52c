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
};

/// A fresh overlay for each disk of a checkpoint: the images themselves are only read. The files are removed
/// again when this is destroyed, unless keep() was called.
class RestoredDisks {
 public:
  /// Checks the images and makes the overlays. Nothing for a checkpoint without disks. kIncompatible and
  /// kNotFound name an image that is not as it was, kBusy one that a process writes to. `number` tells clones
  /// apart; empty for a restore.
  static Result<RestoredDisks> make(Store& store, const Manifest& manifest,
                                    const RestoredDiskOptions& options, const std::string& number);
  RestoredDisks() = default;
  ~RestoredDisks();
  RestoredDisks(RestoredDisks&& other) noexcept;
  RestoredDisks& operator=(RestoredDisks&&) = delete;

  /// Puts them in the place of what the checkpointed VM had. kIncompatible names a disk that the command line
  /// does not.
  Result<void> put_into(QemuCommandLine& line, const std::string& working_directory) const;

  /// The new QEMU has opened them.
  void keep();

  struct Disk {
    SavedDisk saved;
    std::string overlay;
  };
  const std::vector<Disk>& disks() const { return disks_; }
  std::vector<std::string> overlays() const;

 private:
  Result<void> make_all(Store& store, const std::string& id, const RestoredDiskOptions& options,
                        const std::string& number);

  std::vector<Disk> disks_;
  bool temporary_ = false;
  bool kept_ = false;
};

}  // namespace vmsieve
