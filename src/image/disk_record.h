// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// How the point in time of the disks was taken.
enum class DiskWay {
  kSnapshot,  ///< the image stays as it was, and the VM writes to an overlay over it
  kInternal,  ///< a snapshot inside the image, to which the VM goes on writing
  kCopy,      ///< the image was copied into the store
};
std::string_view to_string(DiskWay way);

/// By what it is seen that a file that nobody should have written to was not.
struct FilePrint {
  u64 bytes = 0;
  u64 modified_ns = 0;  ///< mtime, since 1970; of a device 0
  u64 sample = 0;       ///< XXH3-64 of its head and of blocks all over it: print_of()
  friend bool operator==(const FilePrint&, const FilePrint&) = default;
};

/// A file as it was.
struct PrintedFile {
  std::string path;  ///< absolute
  FilePrint print;
};

/// One writable disk of the VM.
struct SavedDisk {
  std::string device;  ///< QEMU's name of the drive; empty for one of -blockdev
  std::string qdev;    ///< path of the device that it is plugged into
  /// Absolute path: holds what the disk held at the checkpoint. Of one with a `source`: rbd:POOL/IMAGE.
  std::string image;
  /// kInternal: where the image is in no file, QEMU's options of its node, a JSON object: RbdImage::options.
  std::string source = {};
  std::string format;  ///< of `image`: "raw", "qcow2"
  u64 virtual_bytes = 0;
  FilePrint print;  ///< of `image`
  /// What `image` is backed by, the uppermost first. What is merged since is not in it any more, and the file
  /// that it was merged into has the print that it got by that.
  std::vector<PrintedFile> below;
  /// kSnapshot: absolute path of the qcow2 file over `image` that the VM went on with.
  std::string overlay;
  /// kInternal: the snapshot's name in the image.
  std::string snapshot;
  /// `image` and what it was backed by, at the checkpoint, absolute paths.
  std::vector<std::string> chain;
};

/// Where the disks of a checkpoint are. Unlike all else of a checkpoint this changes: images are merged, and
/// restored guests get overlays over them. It is there before the VM's disks are touched, and stays when the
/// checkpoint is removed until the images are put back together: docs/disks.md.
struct DiskRecord {
  static constexpr u64 kMaxBytes = 4 * kMiB;  ///< of the encoded record

  std::string checkpoint;  ///< id
  DiskWay way = DiskWay::kSnapshot;
  std::vector<SavedDisk> disks;
  /// Files over the images that guests restored from the checkpoint write to, absolute paths. Some may be
  /// gone.
  std::vector<std::string> children;
  /// Files over the images that the VM wrote to until another, restored from the checkpoint, took its place
  /// and its `overlay`, as they were then: they are to be removed with the checkpoint, unless somebody has
  /// written to them since. What is over another comes behind it.
  std::vector<PrintedFile> abandoned;
  /// Overlays whose content is in `image` too, and that nothing is to be merged from again: they are to be
  /// removed.
  std::vector<std::string> merged;
  /// Images of checkpoints over an overlay that is being merged: as they were to be until then. Their headers
  /// get another backing file's name, and so they another print.
  std::vector<std::string> renamed;
  /// Overlays that are being merged: from then on the image under them need not be as it was.
  std::vector<std::string> begun;
  /// Overlays of a VM that does not run, whose content is in the image and that hold nothing any more: they
  /// stay, for the VM may be started from them.
  std::vector<std::string> emptied;
  /// The VM is about to leave these overlays for the images under them. If its QEMU is gone, nobody can tell
  /// which of the two holds the disk's last state.
  std::vector<std::string> leaving;
};

/// The name of the object that holds the copy of a checkpoint's disk (DiskWay::kCopy), a qcow2 image: disk-0.
std::string disk_object(u64 number);

/// docs/format.md, "disks".
std::string encode_disks(const DiskRecord& record);
/// kDamaged names the member; every path is absolute.
Result<DiskRecord> decode_disks(std::string_view text);

}  // namespace vmsieve
