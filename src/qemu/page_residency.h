// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <vector>

#include <sys/types.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// Half-open range of bytes: [start, end).
struct ByteRange {
  u64 start = 0;
  u64 end = 0;
  friend bool operator==(const ByteRange&, const ByteRange&) = default;
};

/// Appends a range, joined to the last one where they touch or overlap; `start` must not be below
/// the last one's start.
void append_range(std::vector<ByteRange>& ranges, ByteRange range);

/// Which pages count as populated: a page that a userfaultfd write-protected before it was ever touched looks
/// like one that is swapped out (a PTE marker, include/linux/swapops.h). kUnprotected: present or swapped
/// out, and not write-protected by a userfaultfd.
enum class Population { kPresentOrSwapped, kPresent, kUnprotected };

/// What a process has populated of its address space (/proc/PID/pagemap). May be used from several
/// threads.
class Pagemap {
 public:
  /// kPermission when we may not look into the process, kVanished when it is gone.
  static Result<Pagemap> open(pid_t pid);

  /// The pages of [start, end) that are present or swapped out, ascending; pages of the shared
  /// zero page are left out where the kernel tells them apart. By the PAGEMAP_SCAN ioctl
  /// (Linux 6.7, commit 52526ca7fdb9) where there is one, else by reading the 64-bit entries.
  /// Both addresses must be page-aligned.
  Result<std::vector<ByteRange>> populated(u64 start, u64 end,
                                           Population population = Population::kPresentOrSwapped) const;

  /// The same by one way only, for tests: kUnsupported when the kernel has no PAGEMAP_SCAN.
  Result<std::vector<ByteRange>> populated_by_scan(
      u64 start, u64 end, Population population = Population::kPresentOrSwapped) const;
  Result<std::vector<ByteRange>> populated_by_entries(
      u64 start, u64 end, Population population = Population::kPresentOrSwapped) const;

  /// What asynchronous write protection (DirtyTracking) has noted in [start, end): pages that are not
  /// write-protected, ascending; what was discarded (madvise(2)) among them, but only anonymous memory: what
  /// is discarded of a file, or punched into it as a hole, stays protected. `take` protects them again, each
  /// in the same instant in which it is looked at. kUnsupported when a part of the range is not tracked, or
  /// the kernel has no PAGEMAP_SCAN; what is not mapped is not told of.
  enum class Take { kNo, kYes };
  Result<std::vector<ByteRange>> written(u64 start, u64 end, Take take) const;

  /// For each page of [start, end): does a userfaultfd write-protect it? kVanished when the process is gone.
  Result<std::vector<bool>> write_protected(u64 start, u64 end) const;

 private:
  explicit Pagemap(UniqueFd fd) : fd_(std::move(fd)) {}
  struct Query;
  Result<void> scan(u64 start, u64 end, const Query& query, std::vector<ByteRange>& ranges) const;
  Result<void> check_alive() const;

  UniqueFd fd_;
};

/// The parts of [start, end) of a file that hold data (SEEK_DATA, SEEK_HOLE), ascending; nothing
/// when the file system cannot tell. The file's position moves; reading with pread(2) does not mind.
std::optional<std::vector<ByteRange>> data_ranges(int fd, u64 start, u64 end);

}  // namespace vmsieve
