// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve {

/// What a checkpoint can be written as, for programs that do not know this one.
enum class ExportFormat {
  kQemu,           ///< a migration stream for stock QEMU's `-incoming`, with the recorded command line
  kQemuMappedRam,  ///< the same with pages at fixed places (QEMU 9.0, capability mapped-ram)
  kLibvirt,        ///< an image that `virsh restore` takes: the same stream behind the domain's XML
  kRaw,  ///< main memory at its guest-physical addresses; what was left out, and what is no memory, are holes
  kElf,  ///< an ELF core of main memory for drgn and makedumpfile; free pages are not in it
};
std::optional<ExportFormat> parse_export_format(std::string_view name);

struct ExportReport {
  u64 bytes = 0;            ///< length of the file
  u64 allocated_bytes = 0;  ///< what it takes of the disk
};

struct ExportOptions {
  ExportFormat format = ExportFormat::kQemu;
  unsigned threads = 1;  ///< that decode
  /// For kLibvirt: the domain's XML; empty: that of the domain that the checkpoint was taken of.
  std::string domain_xml = {};
};

/// Writes the checkpoint to `path`, which must not be there yet. A FIFO and "-", standard output, take what
/// is written in one go (kQemu, kLibvirt). Every frame is checked; on an error there is no file.
Result<ExportReport> export_checkpoint(const CheckpointReader& reader, const ExportOptions& options,
                                       const std::string& path, const ProgressFunction& progress = {});

/// What is behind the head of an image for libvirt, into a pipe. How many bytes it was.
Result<u64> export_libvirt_stream(const CheckpointReader& reader, unsigned threads, UniqueFd pipe,
                                  const ProgressFunction& progress = {});

}  // namespace vmsieve
