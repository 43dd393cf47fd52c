// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/block_segments.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <algorithm>
#include <cerrno>

namespace vmsieve {

namespace {

/// MAP_PRIVATE | MAP_HUGETLB without a file of the user's: the kernel shows a file that is never
/// written (fs/hugetlbfs/inode.c, hugetlb_file_setup).
bool is_anonymous_huge(const Vma& vma) { return !vma.shared && vma.name.starts_with("/anon_hugepage"); }

bool is_file_of(int fd, const Vma& vma) {
  struct stat info {};
  return ::fstat(fd, &info) == 0 && info.st_ino == vma.inode && major(info.st_dev) == vma.device_major &&
         minor(info.st_dev) == vma.device_minor;
}

}  // namespace

Result<SegmentFinder> SegmentFinder::open(pid_t pid) {
  VMSIEVE_ASSIGN(std::vector<Vma> maps, read_maps(pid));
  return SegmentFinder{pid, std::move(maps)};
}

Result<UniqueFd> SegmentFinder::open_by_descriptor(const Vma& vma) const {
  const std::string folder = fmt::format("/proc/{}/fd", pid_);
  const std::unique_ptr<DIR, int (*)(DIR*)> descriptors{::opendir(folder.c_str()), ::closedir};
  if (!descriptors) return errno_error(errno, fmt::format("cannot list {}", folder));
  while (const dirent* entry = ::readdir(descriptors.get())) {
    const std::string path = folder + "/" + entry->d_name;
    // stat(2) first: opening a device or a FIFO only to look at it could do something.
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode) || info.st_ino != vma.inode) continue;
    auto file = open_file(path, O_RDONLY);
    if (file && is_file_of(file->get(), vma)) return file;
  }
  return make_error(ErrorKind::kPermission,
                    "cannot open the file {} that backs {:#x}-{:#x} of process {}: run as root, or give "
                    "CAP_CHECKPOINT_RESTORE",
                    vma.name, vma.start, vma.end, pid_);
}

Result<std::shared_ptr<const UniqueFd>> SegmentFinder::file_of(const Vma& vma) {
  for (const OpenFile& open : files_) {
    if (open.device_major == vma.device_major && open.device_minor == vma.device_minor &&
        open.inode == vma.inode) {
      return open.file;
    }
  }
  // By the mapping, since the path may have been removed, replaced or be another namespace's.
  auto file = open_file(fmt::format("/proc/{}/map_files/{:x}-{:x}", pid_, vma.start, vma.end), O_RDONLY);
  if (!file || !is_file_of(file->get(), vma)) file = open_by_descriptor(vma);
  if (!file) return file.error();
  auto shared = std::make_shared<const UniqueFd>(std::move(*file));
  files_.push_back({vma.device_major, vma.device_minor, vma.inode, shared});
  return shared;
}

Result<std::vector<BlockSegment>> SegmentFinder::segments(const RamBlock& block) {
  const u64 bytes = round_up(block.used_bytes, kPageSize);
  std::vector<BlockSegment> segments;
  if (bytes == 0) return segments;
  const std::vector<Vma> covering = covering_vmas(maps_, block.host.value, bytes);
  if (covering.empty()) {
    return make_error(ErrorKind::kDamaged,
                      "RAM block '{}' ({:#x} bytes at {:#x}) is not mapped in process {}", block.name, bytes,
                      block.host.value, pid_);
  }
  for (const Vma& vma : covering) {
    const u64 from = std::max(vma.start, block.host.value);
    BlockSegment segment;
    segment.start = from - block.host.value;
    segment.end = std::min(vma.end - block.host.value, bytes);
    segment.host = HostVirtual{from};
    if (is_anonymous_huge(vma)) {
      segment.kind = BlockSegment::Kind::kPrivate;
    } else if (vma.has_file()) {
      auto file = file_of(vma);
      if (!file) return file.error().with_context(fmt::format("RAM block '{}'", block.name));
      segment.kind = vma.shared ? BlockSegment::Kind::kShared : BlockSegment::Kind::kPrivate;
      segment.file = std::move(*file);
      segment.file_offset = vma.file_offset + (from - vma.start);
    }
    segments.push_back(std::move(segment));
  }
  return segments;
}

}  // namespace vmsieve
