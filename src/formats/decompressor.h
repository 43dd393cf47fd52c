// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include <sys/types.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/formats/libvirt_image.h"

namespace vmsieve {

/// The program that libvirt itself would run to read a compressed image (gzip, bzip2, xz, lzop, zstd with
/// -dc; libvirt src/qemu/qemu_saveimage.c), with the file from `offset` on as its input. One thread.
class Decompressor {
 public:
  /// Not for kRaw. kUnsupported when the program is not there. `file` is moved to `offset`.
  static Result<Decompressor> start(LibvirtStream stream, int file, u64 offset);
  ~Decompressor();
  Decompressor(Decompressor&& other) noexcept;
  Decompressor& operator=(Decompressor&&) = delete;

  /// Bytes read; 0 at the end.
  Result<std::size_t> read(std::span<std::byte> out);
  /// kDamaged when the program did not like its input.
  Result<void> finish();

 private:
  Decompressor(pid_t pid, UniqueFd output, const char* name)
      : pid_(pid), output_(std::move(output)), name_(name) {}

  pid_t pid_;
  UniqueFd output_;
  const char* name_;
};

}  // namespace vmsieve
