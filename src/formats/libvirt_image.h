// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"
#include "vmsieve/restore/restore.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve {

/// How an image of `virsh save` goes on behind its head (libvirt src/qemu/qemu_saveimage.h,
/// virQEMUSaveFormat).
enum class LibvirtStream : u32 { kRaw = 0, kGzip = 1, kBzip2 = 2, kXz = 3, kLzop = 4, kZstd = 5 };

/// What stands before the migration stream in an image of `virsh save`: 92 bytes (virQEMUSaveHeader, version
/// 2, in the byte order of the host that wrote them), then the domain's XML, ended by a NUL, and, behind it,
/// what libvirt calls a cookie.
struct LibvirtImageHead {
  static constexpr std::string_view kMagic = "LibvirtQemudSave";
  static constexpr u64 kFixedBytes = 92;
  static constexpr u64 kMaxDataBytes = 64 * kMiB;  ///< of XML and cookie: more is refused

  std::string xml;
  bool was_running = true;
  LibvirtStream stream = LibvirtStream::kRaw;
  u64 stream_offset = 0;  ///< where in the file the migration stream begins, bytes

  /// Without a cookie, for a raw stream.
  static std::vector<std::byte> encode(std::string_view xml, bool was_running);
  /// Of the first kFixedBytes of a file, all but `xml`; kDamaged, kUnsupported.
  static Result<LibvirtImageHead> decode_fixed(std::span<const std::byte> fixed);
  /// `xml` out of the bytes between kFixedBytes and stream_offset; kDamaged when it has no end.
  Result<void> take_xml(std::span<const std::byte> data);
};

/// Was the checkpoint taken of a domain of libvirt's, and is nothing asked for that only a QEMU started by
/// restore() can do?
bool belongs_to_libvirt(const Manifest& manifest, const RestoreOptions& options);

/// Gives such a checkpoint to libvirt as `virsh restore` does it, through a FIFO and not a file. Its domain
/// runs, or stands stopped, when this returns, on fresh files over the checkpoint's disks (RestoredDisks).
/// kRefused with libvirt's own words: then there is no such domain, nor when a frame is damaged. kUnsupported
/// for RestoreMode::kLazy, and for temporary disks.
Result<RestoreReport> restore_in_libvirt(Store& store, const CheckpointReader& reader,
                                         const RestoreOptions& options, const ProgressFunction& progress);

}  // namespace vmsieve
