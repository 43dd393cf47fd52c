// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/capture/save.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

/// What other programs write a guest's state as; all but kElf hold its device state.
enum class ImportFormat {
  kQemu,           ///< a migration stream (QEMU docs/devel/migration/main.rst)
  kQemuMappedRam,  ///< the same with pages at fixed places (docs/devel/migration/mapped-ram.rst)
  kLibvirt,        ///< an image of `virsh save`: LibvirtImageHead, then a stream, perhaps compressed
  kElf,            ///< a core of the machine: import_dump()
};
std::string_view to_string(ImportFormat format);

/// By the beginning of a file: a stream's magic, and the capabilities that its configuration section names
/// (QEMU migration/savevm.c, configuration_post_load()). kUnsupported with what it is instead.
Result<ImportFormat> recognise_import(std::span<const std::byte> beginning);

struct ImportOptions {
  /// QEMU's, with its program first: no file of QEMU's holds one, and without it nobody could load it. May be
  /// empty for kLibvirt: then libvirt loads it. Of no use for kElf.
  std::vector<std::string> command_line;
  std::string working_directory;  ///< for relative paths in it; absolute
  SaveOptions saving;             ///< `mode` and `incremental` do not matter
};

struct ImportReport {
  SaveReport saved;
  ImportFormat format = ImportFormat::kQemu;
  u64 file_bytes = 0;
  u64 allocated_bytes = 0;  ///< what the file takes of the disk
};

/// Makes a checkpoint of the file at `path`. Of a core as import_dump() does. Of all others a QEMU is started
/// with the command line (or by libvirt, with the domain's XML), loads it, and is saved and ended without
/// having run the guest: so what can be imported is what this QEMU can load, and the guest is introspected as
/// any other. On any error, and when this process dies, neither that QEMU nor anything in the store remains
/// (only a domain of libvirt's stays when this process is killed: it stands paused). kIncompatible with
/// QEMU's own words when it does not load it; also as restore() has it. Forks, as save() does.
Result<ImportReport> import_file(const std::string& path, Store& store, const ImportOptions& options,
                                 const ProgressFunction& progress);

}  // namespace vmsieve
