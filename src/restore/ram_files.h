// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"
#include "vmsieve/restore/command_line.h"

namespace vmsieve {

/// A checkpoint leaves pages out, and they must read as zeros in the new QEMU. RAM that QEMU makes itself
/// does (anonymous, memfd, a file in a folder). RAM in a file that is there already does not: the old bytes
/// would show through where the guest has free memory.
///
///   the file is ...             and is shared (share=on)                  and is private (share=off)
///   absent, empty, all holes    nothing to do                             nothing to do
///   used by a process           kBusy: it is somebody's memory            not touched, see below
///   holds bytes                 made zero before QEMU starts: they are    not touched (it may be the image
///   of
///                               an ended guest's memory, of no use        many guests); every page of the
///                               guest without its devices                       is sent, the zeros too
///   a device (DAX)              every page is sent, the zeros too         the same
///   readonly=on                 kUnsupported: QEMU could not load into it
///   persistent memory (pmem=on, an nvdimm's or virtio-pmem's) that holds bytes: kUnsupported, since the
///   checkpoint would overwrite what is stored there
///
/// Every refusal names the option that gives another file.
struct RamFile {
  std::string option;  ///< "object" or "mem-path"
  std::string id;      ///< of the memory backend; empty for -mem-path
  std::string path;    ///< resolved
  bool shared = false;
  bool readonly = false;
  bool persistent = false;
  u64 offset = 0;  ///< bytes into the file
  u64 bytes = 0;   ///< 0: not known, to the file's end
};

/// The files in which this command line puts RAM, whether they are there or not.
std::vector<RamFile> find_ram_files(const QemuCommandLine& command_line,
                                    const std::string& working_directory);

struct RamFileCheck {
  std::vector<RamFile> to_clear;  ///< shared files with old bytes, used by nobody
  bool old_bytes_show = false;    ///< every page must be sent
};

/// Looks at the files and changes nothing.
Result<RamFileCheck> check_ram_files(const std::vector<RamFile>& files);

/// Makes the backend's range of each file zero: a hole where the file system can punch one (tmpfs,
/// hugetlbfs, ext4, xfs, btrfs), else the file is cut and made long again.
Result<void> clear_ram_files(const std::vector<RamFile>& files);

/// A QEMU size: digits with an optional suffix B, K, M, G, T, P or E (QEMU util/cutils.c, qemu_strtosz);
/// nothing for what is none, fractions included. `unit` is that of a number without suffix.
std::optional<u64> parse_size(std::string_view text, u64 unit);

}  // namespace vmsieve
