// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include <sys/types.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/qemu/proc_maps.h"
#include "vmsieve/qemu/ram_layout.h"

namespace vmsieve {

/// How one stretch of a RAM block is mapped in QEMU, and so how it is read without making the host
/// allocate anything.
struct BlockSegment {
  enum class Kind {
    kShared,   ///< shared file mapping (memfd, tmpfs, hugetlbfs, shared anonymous): through the file
    kPrivate,  ///< private mapping: populated pages from the process, the others from the file, or
               ///< zeros when there is none
  };
  u64 start = 0;  ///< bytes into the block
  u64 end = 0;
  Kind kind = Kind::kPrivate;
  HostVirtual host;                      ///< of `start`
  std::shared_ptr<const UniqueFd> file;  ///< none for memory without a file
  u64 file_offset = 0;                   ///< of `start`
};

/// Looks at the mappings of a process, opening each file behind them once: through
/// /proc/PID/map_files, which privilege may be needed for, else through the process's own
/// descriptors.
class SegmentFinder {
 public:
  static Result<SegmentFinder> open(pid_t pid);

  /// The segments of [0, used_bytes rounded up to a page), ascending, without gaps. kPermission when
  /// the file behind a shared mapping cannot be opened, since reading its holes through the mapping
  /// would allocate them.
  Result<std::vector<BlockSegment>> segments(const RamBlock& block);

 private:
  struct OpenFile {
    u64 device_major, device_minor, inode;
    std::shared_ptr<const UniqueFd> file;
  };

  SegmentFinder(pid_t pid, std::vector<Vma> maps) : pid_(pid), maps_(std::move(maps)) {}
  Result<std::shared_ptr<const UniqueFd>> file_of(const Vma& vma);
  Result<UniqueFd> open_by_descriptor(const Vma& vma) const;

  pid_t pid_;
  std::vector<Vma> maps_;
  std::vector<OpenFile> files_;
};

}  // namespace vmsieve
