// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/page_residency.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>

namespace vmsieve {

namespace {

// include/uapi/linux/fs.h; spelled out since the headers of older systems lack it.
struct ScanRegion {
  u64 start;
  u64 end;
  u64 categories;
};
struct ScanArguments {
  u64 size;
  u64 flags;
  u64 start;
  u64 end;
  u64 walk_end;
  u64 regions;
  u64 region_count;
  u64 max_pages;
  u64 category_inverted;
  u64 category_mask;
  u64 category_anyof_mask;
  u64 return_mask;
};
constexpr u64 kProtectMatching = u64{1} << 0;
constexpr u64 kCheckTracked = u64{1} << 1;  // every mapping must have asynchronous write protection
constexpr u64 kIsWritten = u64{1} << 1;     // not write-protected by a userfaultfd
constexpr u64 kIsPresent = u64{1} << 3;
constexpr u64 kIsSwapped = u64{1} << 4;
constexpr u64 kIsZeroPage = u64{1} << 5;
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArguments);

// Documentation/admin-guide/mm/pagemap.rst.
constexpr u64 kEntryPresent = u64{1} << 63;
constexpr u64 kEntrySwapped = u64{1} << 62;
constexpr u64 kEntryWriteProtected = u64{1} << 57;
constexpr u64 kEntriesPerRead = kMiB / sizeof(u64);

std::vector<ByteRange> sorted(std::vector<ByteRange> ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const ByteRange& a, const ByteRange& b) { return a.start < b.start; });
  std::vector<ByteRange> merged;
  for (const ByteRange& range : ranges) append_range(merged, range);
  return merged;
}

/// hugetlbfs calls all of a file data, but counts its pages (mm/hugetlb.c, hugetlb_add_to_page_cache).
bool is_untouched_hugetlb(int fd) {
  struct statfs system {};
  struct stat file {};
  return ::fstatfs(fd, &system) == 0 && system.f_type == HUGETLBFS_MAGIC && ::fstat(fd, &file) == 0 &&
         file.st_blocks == 0;
}

}  // namespace

void append_range(std::vector<ByteRange>& ranges, ByteRange range) {
  if (range.start >= range.end) return;
  if (!ranges.empty() && range.start <= ranges.back().end) {
    ranges.back().end = std::max(ranges.back().end, range.end);
  } else {
    ranges.push_back(range);
  }
}

Result<Pagemap> Pagemap::open(pid_t pid) {
  auto fd = open_file(fmt::format("/proc/{}/pagemap", pid), O_RDONLY);
  if (fd) return Pagemap{std::move(*fd)};
  if (fd.error().kind() != ErrorKind::kNotFound) return fd.error();
  return make_error(ErrorKind::kVanished, "process {} is gone", pid);
}

Result<std::vector<ByteRange>> Pagemap::populated(u64 start, u64 end, Population population) const {
  auto ranges = populated_by_scan(start, end, population);
  if (ranges || ranges.error().kind() != ErrorKind::kUnsupported) return ranges;
  return populated_by_entries(start, end, population);
}

/// Which pages PAGEMAP_SCAN is to tell of: those whose categories, after those in `inverted` were turned
/// round, hold all of `all` and, unless it is 0, one of `any`.
struct Pagemap::Query {
  u64 flags = 0;
  u64 inverted = 0;
  u64 all = 0;
  u64 any = 0;
};

// kVanished when the process's address space is gone.
Result<void> Pagemap::check_alive() const {
  std::array<std::byte, sizeof(u64)> entry;
  const auto read = pread_exact(fd_.get(), entry, 0, "pagemap");
  // It ends early only when the process's address space is gone (fs/proc/task_mmu.c, pagemap_read()).
  if (!read && read.error().kind() == ErrorKind::kDamaged)
    return Error(ErrorKind::kVanished, "the process has gone");
  return read;
}

// The ranges may come in any order, and some twice: a walk that the kernel had to interrupt for its own
// buffer of 512 regions tells of the end of its first part, also when it went on from there to the end of the
// range (fs/proc/task_mmu.c, do_pagemap_scan()). What lies behind is then looked at again.
Result<void> Pagemap::scan(u64 start, u64 end, const Query& query, std::vector<ByteRange>& ranges) const {
  std::array<ScanRegion, 1024> regions;
  const std::size_t before = ranges.size();
  while (start < end) {
    ScanArguments scan{};
    scan.size = sizeof scan;
    scan.flags = query.flags;
    scan.start = start;
    scan.end = end;
    // The kernel takes the pointer as a number.
    scan.regions = reinterpret_cast<u64>(regions.data());
    scan.region_count = regions.size();
    scan.category_inverted = query.inverted;
    scan.category_mask = query.all;
    scan.category_anyof_mask = query.any;
    scan.return_mask = kIsPresent;
    const int n = ::ioctl(fd_.get(), kPagemapScan, &scan);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == ENOTTY || errno == EINVAL)) {
      return make_error(ErrorKind::kUnsupported, "this kernel has no PAGEMAP_SCAN");
    }
    if (n < 0 && errno == EPERM && (query.flags & kCheckTracked) != 0) {
      return make_error(ErrorKind::kUnsupported, "the memory at {:#x}-{:#x} is not tracked", start, end);
    }
    if (n < 0) return errno_error(errno, fmt::format("cannot scan the pagemap of {:#x}-{:#x}", start, end));
    for (const ScanRegion& region : std::span{regions}.first(std::min<std::size_t>(n, regions.size()))) {
      ranges.push_back({std::max(region.start, start), std::min(region.end, end)});
    }
    if (scan.walk_end <= start) {
      return make_error(ErrorKind::kIo, "the pagemap scan of {:#x}-{:#x} made no progress", start, end);
    }
    start = scan.walk_end;
  }
  // Some kernels find nothing in an address space that is gone, others say so.
  return ranges.size() == before ? check_alive() : Result<void>{};
}

Result<std::vector<ByteRange>> Pagemap::populated_by_scan(u64 start, u64 end, Population population) const {
  Query query;
  query.inverted = kIsZeroPage;
  query.all = population == Population::kUnprotected ? kIsZeroPage | kIsWritten : kIsZeroPage;
  query.any = population == Population::kPresent ? kIsPresent : kIsPresent | kIsSwapped;
  std::vector<ByteRange> ranges;
  VMSIEVE_TRY(scan(start, end, query, ranges));
  return sorted(std::move(ranges));
}

Result<std::vector<ByteRange>> Pagemap::written(u64 start, u64 end, Take take) const {
  const u64 flags = kCheckTracked | (take == Take::kYes ? kProtectMatching : 0);
  std::vector<ByteRange> changed;
  VMSIEVE_TRY(scan(start, end, {.flags = flags, .all = kIsWritten}, changed));
  // What was discarded is neither present nor swapped out, and whether it counts as written depends on the
  // kernel and on the size of its pages (fs/proc/task_mmu.c, pagemap_page_category(),
  // pagemap_scan_pte_hole()).
  constexpr u64 kThere = kIsPresent | kIsSwapped;
  VMSIEVE_TRY(scan(start, end, {.flags = flags, .inverted = kThere, .all = kThere}, changed));
  return sorted(std::move(changed));
}

Result<std::vector<ByteRange>> Pagemap::populated_by_entries(u64 start, u64 end,
                                                             Population population) const {
  const u64 wanted = population == Population::kPresent ? kEntryPresent : kEntryPresent | kEntrySwapped;
  const u64 pages = (end - start) / kPageSize;
  const std::unique_ptr<u64[]> entries{new u64[std::min(pages, kEntriesPerRead)]};
  std::vector<ByteRange> ranges;
  for (u64 page = 0; page < pages;) {
    const u64 count = std::min(pages - page, kEntriesPerRead);
    const std::span<u64> chunk{entries.get(), count};
    const u64 offset = (start / kPageSize + page) * sizeof(u64);
    VMSIEVE_TRY(pread_exact(fd_.get(), std::as_writable_bytes(chunk), offset, "pagemap"));
    for (u64 i = 0; i < count; ++i) {
      if ((chunk[i] & wanted) == 0) continue;
      if (population == Population::kUnprotected && (chunk[i] & kEntryWriteProtected) != 0) continue;
      const u64 address = start + (page + i) * kPageSize;
      append_range(ranges, {address, address + kPageSize});
    }
    page += count;
  }
  return ranges;
}

Result<std::vector<bool>> Pagemap::write_protected(u64 start, u64 end) const {
  std::vector<u64> entries((end - start) / kPageSize);
  const auto read = pread_exact(fd_.get(), std::as_writable_bytes(std::span{entries}),
                                start / kPageSize * sizeof(u64), "pagemap");
  // It ends early only when the process's address space is gone (fs/proc/task_mmu.c, pagemap_read()).
  if (!read && read.error().kind() == ErrorKind::kDamaged)
    return Error(ErrorKind::kVanished, "the process has gone");
  VMSIEVE_TRY(read);
  std::vector<bool> protected_pages;
  protected_pages.reserve(entries.size());
  for (const u64 entry : entries) protected_pages.push_back((entry & kEntryWriteProtected) != 0);
  return protected_pages;
}

std::optional<std::vector<ByteRange>> data_ranges(int fd, u64 start, u64 end) {
  std::vector<ByteRange> ranges;
  if (is_untouched_hugetlb(fd)) return ranges;
  while (start < end) {
    const off_t data = ::lseek(fd, static_cast<off_t>(start), SEEK_DATA);
    // ENXIO: no data from here on. Anything else: the file system cannot tell.
    if (data < 0 && errno == ENXIO) break;
    if (data < 0) return std::nullopt;
    if (static_cast<u64>(data) >= end) break;
    const off_t hole = ::lseek(fd, data, SEEK_HOLE);
    // A file that another process changes meanwhile can have lost the data again.
    if (hole < 0 && errno != ENXIO) return std::nullopt;
    const u64 stop = hole > data ? static_cast<u64>(hole) : static_cast<u64>(data) + kPageSize;
    append_range(ranges, {static_cast<u64>(data), std::min(stop, end)});
    start = stop;
  }
  return ranges;
}

}  // namespace vmsieve
