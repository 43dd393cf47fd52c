// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/image/disk_record.h"
#include "vmsieve/qemu/given_descriptor.h"
#include "vmsieve/qemu/machine.h"
#include "vmsieve/qemu/qmp.h"
#include "vmsieve/qemu/rbd_image.h"

namespace vmsieve {

/// What begin() is told.
struct DiskPointOptions {
  std::string checkpoint;  ///< id; part of all names that are made
  DiskWay way = DiskWay::kSnapshot;
  std::string folder;             ///< for overlays; empty: beside each image
  std::string working_directory;  ///< of QEMU, where relative names begin
  bool libvirt = false;           ///< the monitor is a LibvirtDomain's
  /// Makes a record durable; called before anything changes that the record tells of.
  std::function<Result<void>(const DiskRecord&)> note;
  /// The chain of the disk at the checkpoint after which the VM went on with this file; empty when that is
  /// not known. So a VM whose disks were flattened is known by the image on its command line all the same.
  std::function<std::vector<std::string>(const std::string& overlay)> earlier_chain;
  /// kCopy: a new empty file in the store, open for reading and writing; the number counts from 0.
  std::function<Result<UniqueFd>(u64 number)> copy_file;
};

/// One instant of all writable disks of a VM, in steps around the pause. Of a VM that libvirt runs, libvirt
/// makes it where the disks get other names, and knows them from then on. From one thread.
///
/// When it is destroyed before take(), nothing is left of it. After take() the VM writes to overlays,
/// whatever becomes of the checkpoint: tidy_disks() puts them back together by the record.
class DiskPoint {
 public:
  /// While the guest runs: makes what the instant needs. kUnsupported names a disk of which no such point can
  /// be taken, and why.
  static Result<std::unique_ptr<DiskPoint>> prepare(QmpClient& qmp, const std::vector<WritableDisk>& disks,
                                                    DiskPointOptions options);
  ~DiskPoint();
  DiskPoint(const DiskPoint&) = delete;
  DiskPoint& operator=(const DiskPoint&) = delete;

  /// While it stands still: one QMP transaction for all disks. kRefused: nothing has changed.
  Result<void> take();

  /// When it runs again: what is to be known of the images, which from now on do not change. kCopy: waits
  /// until all is copied. The record is noted.
  Result<DiskRecord> finish(const ProgressFunction& progress);

  const DiskRecord& record() const { return record_; }

 private:
  DiskPoint(QmpClient& qmp, DiskPointOptions options) : qmp_(qmp), options_(std::move(options)) {}
  Result<SavedDisk> describe(const WritableDisk& disk, u64 number) const;
  Result<SavedDisk> describe_in_cluster(SavedDisk saved, const RbdImage& image,
                                        const WritableDisk& disk) const;
  Result<void> prepare_overlay(const WritableDisk& disk, const SavedDisk& saved, u64 number);
  Result<void> prepare_file_for_libvirt(const SavedDisk& saved);
  Result<void> prepare_libvirt();
  Result<QmpClient::Json> take_all();
  Result<void> prepare_copy(const WritableDisk& disk, const SavedDisk& saved, u64 number);
  Result<void> close_nodes();
  std::string node(u64 number) const;
  std::string job(u64 number) const;

  QmpClient& qmp_;
  DiskPointOptions options_;
  DiskRecord record_;
  QmpClient::Json actions_ = QmpClient::Json::array();
  std::string libvirts_snapshot_;   ///< what libvirt is to do instead
  std::vector<std::string> nodes_;  ///< made by us, the uppermost last
  std::vector<std::string> files_;  ///< of overlays
  std::vector<GivenDescriptor> given_;
  bool taken_ = false;
};

/// Waits until a job of QEMU's is concluded, and dismisses it. kRefused with QEMU's own words when it failed.
Result<void> wait_for_job(QmpClient& qmp, const std::string& job, const ProgressFunction& progress = {});

/// The names of the node that is made for disk `number` of a checkpoint, and of the one of its file.
std::string overlay_node(const std::string& checkpoint, u64 number);
std::string overlay_file_node(const std::string& checkpoint, u64 number);

}  // namespace vmsieve
