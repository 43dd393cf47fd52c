// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// One mapping of another process (/proc/PID/maps, proc_pid_maps(5)): [start, end).
struct Vma {
  u64 start = 0;
  u64 end = 0;
  bool readable = false;
  bool writable = false;
  bool executable = false;
  bool shared = false;
  u64 file_offset = 0;
  u64 device_major = 0;
  u64 device_minor = 0;
  u64 inode = 0;  ///< 0: no file
  std::string name;

  bool has_file() const { return inode != 0; }
};

/// Parses the text of a maps file: ascending, not overlapping; anything else is kDamaged.
Result<std::vector<Vma>> parse_maps(std::string_view text);

/// Reads and parses /proc/PID/maps; kVanished when the process is gone.
Result<std::vector<Vma>> read_maps(pid_t pid);

/// The mappings that cover [start, start + bytes) without a gap, or none when there is a gap.
std::vector<Vma> covering_vmas(const std::vector<Vma>& maps, u64 start, u64 bytes);

}  // namespace vmsieve
