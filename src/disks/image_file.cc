// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/disks/image_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "vmsieve/base/endian.h"
#include "vmsieve/base/fd.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/manifest.h"
#include "vmsieve/qemu/file_users.h"
#include "vmsieve/qemu/machine.h"

namespace vmsieve {

namespace {

namespace fs = std::filesystem;

constexpr u64 kHeadBytes = 64 << 10;
constexpr u64 kSampleBytes = 4096;
constexpr u64 kSamples = 62;
constexpr std::string_view kMark = ".vmsieve-";
constexpr std::string_view kMagic = "QFI\xfb";  // of qcow2
constexpr std::size_t kFixedBytes = 72;         // of its header, of version 2

/// The first bytes of a qcow2 image; of other files fewer.
Result<std::string> read_head(const std::string& path) {
  VMSIEVE_ASSIGN(const UniqueFd fd, open_file(path, O_RDONLY | O_NONBLOCK));
  std::string head(kFixedBytes, '\0');
  for (std::size_t done = 0;;) {
    const ssize_t n = ::pread(fd.get(), head.data() + done, head.size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error(errno, fmt::format("cannot read {}", path));
    done += static_cast<std::size_t>(n);
    if (n == 0 || (done == kFixedBytes && !head.starts_with(kMagic)) || done == kQcow2HeadBytes) {
      head.erase(done);
      return head;
    }
    if (done == head.size()) head.resize(kQcow2HeadBytes);
  }
}

}  // namespace

std::string folder_of(const std::string& path) { return fs::path(path).parent_path().string(); }

Result<FilePrint> print_of(const std::string& path) {
  VMSIEVE_ASSIGN(const UniqueFd fd, open_file(path, O_RDONLY | O_NONBLOCK));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return errno_error(errno, fmt::format("cannot look at {}", path));
  FilePrint print;
  if (S_ISBLK(info.st_mode)) {
    if (::ioctl(fd.get(), BLKGETSIZE64, &print.bytes) != 0)
      return errno_error(errno, fmt::format("cannot tell the size of {}", path));
  } else if (S_ISREG(info.st_mode)) {
    print.bytes = static_cast<u64>(info.st_size);
    print.modified_ns =
        static_cast<u64>(info.st_mtim.tv_sec) * 1'000'000'000 + static_cast<u64>(info.st_mtim.tv_nsec);
  } else {
    return make_error(ErrorKind::kUnsupported, "{} is neither a file nor a block device", path);
  }
  std::vector<std::byte> sampled;
  const auto take = [&](u64 offset, u64 bytes) -> Result<void> {
    const u64 there = std::min(bytes, print.bytes - std::min(print.bytes, offset));
    const std::size_t before = sampled.size();
    sampled.resize(before + there);
    return pread_exact(fd.get(), std::span{sampled}.subspan(before), offset, path);
  };
  VMSIEVE_TRY(take(0, kHeadBytes));
  if (print.bytes > kHeadBytes) {
    const u64 step = (print.bytes - kHeadBytes) / (kSamples + 1);
    for (u64 i = 1; i <= kSamples; ++i) VMSIEVE_TRY(take(kHeadBytes + i * step, kSampleBytes));
    VMSIEVE_TRY(take(print.bytes - std::min(print.bytes, kSampleBytes), kSampleBytes));
  }
  print.sample = checksum(sampled);
  return print;
}

Result<void> check_print(const SavedDisk& disk) { return check_print(disk.image, disk.print); }

Result<void> check_print(const std::string& image, const FilePrint& print) {
  VMSIEVE_ASSIGN(const FilePrint now, print_of(image));
  if (now == print) return {};
  return make_error(ErrorKind::kIncompatible,
                    "the disk image {} is not what it was at the checkpoint ({} has changed): bring it back "
                    "to what it was, or use --disks-as-they-are",
                    image,
                    now.bytes != print.bytes     ? "its size"
                    : now.sample != print.sample ? "its content"
                                                 : "the time of its last change");
}

Result<std::optional<std::string>> backing_in_header(std::string_view head) {
  constexpr u32 kLongestName = 1023;
  std::optional<std::string> none;
  if (!head.starts_with(kMagic)) return none;
  const auto damaged = [] { return Error(ErrorKind::kDamaged, "the header of the image is not whole"); };
  if (head.size() < kFixedBytes) return damaged();
  const std::byte* bytes = as_byte_span(head).data();
  const u64 offset = u64{load_be<u32>(bytes + 8)} << 32 | load_be<u32>(bytes + 12);
  const u32 length = load_be<u32>(bytes + 16);
  if (offset == 0) return none;
  if (length == 0 || length > kLongestName || offset > head.size() || length > head.size() - offset)
    return damaged();
  const std::string_view name = head.substr(offset, length);
  // QEMU would take what stands before a zero byte.
  if (name.find('\0') != std::string_view::npos) return damaged();
  return std::optional<std::string>(name);
}

Result<std::optional<std::string>> backing_of(const std::string& path) {
  VMSIEVE_ASSIGN(const std::string head, read_head(path));
  auto name = backing_in_header(head);
  if (!name) return name.error().with_context(path);
  if (!*name) return name;
  const auto file = image_path(**name);
  if (!file) return make_error(ErrorKind::kUnsupported, "{} is backed by {}, which is no file", path, **name);
  if (file->starts_with('/')) return std::optional<std::string>(*file);
  return std::optional<std::string>(folder_of(path) + "/" + *file);
}

std::optional<std::string> backing_format_in_header(std::string_view head) {
  constexpr u32 kBackingFormat = 0xe2792aca;
  constexpr std::size_t kLongestName = 64;
  if (!head.starts_with(kMagic) || head.size() < kFixedBytes) return std::nullopt;
  const std::byte* bytes = as_byte_span(head).data();
  const u32 version = load_be<u32>(bytes + 4);
  u64 at = kFixedBytes;
  if (version >= 3) {
    if (head.size() < 104) return std::nullopt;
    at = load_be<u32>(bytes + 100);  // header_length
  }
  while (at + 8 <= head.size()) {
    const u32 type = load_be<u32>(bytes + at);
    const u64 length = load_be<u32>(bytes + at + 4);
    at += 8;
    if (type == 0 || length > head.size() - at) break;
    if (type == kBackingFormat && length <= kLongestName) return std::string(head.substr(at, length));
    at += round_up(length, 8);
  }
  return std::nullopt;
}

Result<std::optional<std::string>> backing_format_of(const std::string& path) {
  VMSIEVE_ASSIGN(const std::string head, read_head(path));
  return backing_format_in_header(head);
}

Result<std::vector<std::string>> chain_of(const std::string& path) {
  std::vector<std::string> chain{path};
  for (;;) {
    VMSIEVE_ASSIGN(const auto backing, backing_of(chain.back()));
    if (!backing) return chain;
    if (chain.size() == kLongestChain)
      return make_error(ErrorKind::kDamaged, "the chain of backing files of {} does not end", path);
    chain.push_back(*backing);
  }
}

Result<bool> is_held_for_writing(const std::string& path) {
  constexpr off_t kWriteByte = 101;
  VMSIEVE_ASSIGN(const UniqueFd fd, open_file(path, O_RDONLY | O_NONBLOCK));
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = kWriteByte;
  lock.l_len = 1;
  if (::fcntl(fd.get(), F_OFD_GETLK, &lock) != 0) return false;
  return lock.l_type != F_UNLCK;
}

std::vector<pid_t> users_of(const std::string& path) {
  std::vector<pid_t> users;
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return users;
  for (const pid_t pid : visible_processes()) {
    if (pid != ::getpid() && has_open(pid, info, OpenedFor::kAnything)) users.push_back(pid);
  }
  return users;
}

bool file_exists(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0;
}

bool is_gone(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) != 0 && errno == ENOENT && file_exists(folder_of(path));
}

Result<void> sync_file(const std::string& path) {
  VMSIEVE_ASSIGN(const UniqueFd fd, open_file(path, O_RDONLY | O_NONBLOCK));
  if (::fsync(fd.get()) != 0) return errno_error(errno, fmt::format("cannot make {} durable", path));
  return {};
}

std::vector<std::string> images_over(const std::string& image) {
  std::vector<std::string> over;
  std::error_code error;
  const fs::path canonical = fs::weakly_canonical(image, error);
  for (fs::directory_iterator at(folder_of(image), error), end; !error && at != end; at.increment(error)) {
    std::error_code ignored;
    if (!at->is_regular_file(ignored)) continue;
    const auto backing = backing_of(at->path().string());
    if (!backing || !*backing) continue;
    if (fs::weakly_canonical(**backing, ignored) == canonical) over.push_back(at->path().string());
  }
  return over;
}

namespace {

/// Of an image, or of an overlay over it: without folder, mark and suffix.
std::string stem_of(const std::string& image) {
  std::string stem = fs::path(image).filename().string();
  if (const std::size_t mark = stem.find(kMark); mark != std::string::npos && mark != 0) {
    stem.erase(mark);
  } else {
    for (const std::string_view suffix : {".qcow2", ".raw", ".img"}) {
      if (stem.ends_with(suffix) && stem.size() > suffix.size()) {
        stem.erase(stem.size() - suffix.size());
        break;
      }
    }
  }
  return stem;
}

}  // namespace

std::vector<std::string> gone_overlays_in(const std::vector<std::string>& arguments,
                                          const std::string& image) {
  constexpr std::string_view kSuffix = ".qcow2";
  std::vector<std::string> found;
  for (const std::string& argument : arguments) {
    for (std::size_t mark = argument.find(kMark); mark != std::string::npos;
         mark = argument.find(kMark, mark + kMark.size())) {
      const std::size_t end = argument.find(kSuffix, mark);
      if (end == std::string::npos) break;
      // Up to what stands before a path in QEMU's options: file=PATH, "filename": "PATH".
      const std::size_t before = argument.find_last_of("=\"", mark);
      const std::size_t begin = before == std::string::npos ? 0 : before + 1;
      const std::string path = argument.substr(begin, end + kSuffix.size() - begin);
      const bool is_one = path.starts_with('/') && !checkpoint_in_name(path).empty() && is_gone(path) &&
                          stem_of(path) == stem_of(image);
      if (is_one && std::ranges::find(found, path) == found.end()) found.push_back(path);
    }
  }
  return found;
}

std::string overlay_path(const std::string& image, const std::string& folder, const std::string& id,
                         const std::string& number) {
  const std::string stem = stem_of(image);
  return fmt::format("{}/{}{}{}{}{}.qcow2", folder.empty() ? folder_of(image) : folder, stem, kMark, id,
                     number.empty() ? "" : ".", number);
}

std::string checkpoint_in_name(const std::string& overlay) {
  const std::string name = fs::path(overlay).filename().string();
  const std::size_t mark = name.rfind(kMark);
  if (mark == std::string::npos) return "";
  const std::size_t begin = mark + kMark.size();
  std::string id = name.substr(begin, name.find('.', begin) - begin);
  return is_checkpoint_id(id) ? id : "";
}

Result<void> give_to_owner_of(const std::string& image, const std::string& file) {
  struct stat info {};
  if (::stat(image.c_str(), &info) != 0) return errno_error(errno, fmt::format("cannot look at {}", image));
  if (::chown(file.c_str(), info.st_uid, info.st_gid) != 0 || ::chmod(file.c_str(), info.st_mode & 0666) != 0)
    return errno_error(errno, fmt::format("cannot give {} to the owner of {}", file, image));
  return {};
}

Result<bool> is_empty_image(const std::string& path) {
  constexpr u64 kMostL1Bytes = 32 << 20;  // QEMU block/qcow2.h, QCOW_MAX_L1_SIZE
  VMSIEVE_ASSIGN(const UniqueFd fd, open_file(path, O_RDONLY | O_NONBLOCK));
  std::array<std::byte, 72> header{};
  VMSIEVE_TRY(pread_exact(fd.get(), header, 0, path));
  if (std::memcmp(header.data(), "QFI\xfb", 4) != 0)
    return make_error(ErrorKind::kUnsupported, "{} is no qcow2 image", path);
  const u64 l1_bytes = u64{load_be<u32>(header.data() + 36)} * sizeof(u64);
  const u64 l1_offset = u64{load_be<u32>(header.data() + 40)} << 32 | load_be<u32>(header.data() + 44);
  const u64 snapshots = load_be<u32>(header.data() + 60);
  if (l1_bytes > kMostL1Bytes) return make_error(ErrorKind::kDamaged, "the L1 table of {} is too long", path);
  std::vector<std::byte> l1(l1_bytes);
  VMSIEVE_TRY(pread_exact(fd.get(), l1, l1_offset, path));
  return snapshots == 0 && std::ranges::all_of(l1, [](std::byte one) { return one == std::byte{0}; });
}

void sync_folder_of(const std::string& path) {
  const auto folder = open_file(folder_of(path), O_RDONLY | O_DIRECTORY);
  if (folder.ok()) (void)::fsync(folder->get());
}

}  // namespace vmsieve
