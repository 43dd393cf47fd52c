// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/proc_maps.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "vmsieve/base/fd.h"

namespace vmsieve {

namespace {

/// 65,530 mappings (the default of vm.max_map_count) of long paths.
constexpr u64 kMapsLimit = 256 * kMiB;

/// Takes a number and the separator behind it off the front of `text`.
std::optional<u64> take_number(std::string_view& text, int base, char separator) {
  u64 value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc{}) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  // The name, and the space before it, may be missing behind the inode.
  if (text.empty() && separator == ' ') return value;
  if (!text.starts_with(separator)) return std::nullopt;
  text.remove_prefix(1);
  return value;
}

/// "7f3c00000000-7f3c00400000 rw-s 00100000 00:01 1034   /memfd:ram (deleted)"
std::optional<Vma> parse_line(std::string_view line) {
  constexpr std::size_t kPermissions = 5;
  Vma vma;
  const auto start = take_number(line, 16, '-');
  const auto end = start ? take_number(line, 16, ' ') : std::nullopt;
  if (!end || *start >= *end || line.size() < kPermissions) return std::nullopt;
  vma.start = *start;
  vma.end = *end;
  vma.readable = line[0] == 'r';
  vma.writable = line[1] == 'w';
  vma.executable = line[2] == 'x';
  vma.shared = line[3] == 's';
  line.remove_prefix(kPermissions);
  const auto offset = take_number(line, 16, ' ');
  const auto major = offset ? take_number(line, 16, ':') : std::nullopt;
  const auto minor = major ? take_number(line, 16, ' ') : std::nullopt;
  const auto inode = minor ? take_number(line, 10, ' ') : std::nullopt;
  if (!inode) return std::nullopt;
  vma.file_offset = *offset;
  vma.device_major = *major;
  vma.device_minor = *minor;
  vma.inode = *inode;
  line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
  vma.name = std::string{line};
  return vma;
}

}  // namespace

Result<std::vector<Vma>> parse_maps(std::string_view text) {
  std::vector<Vma> maps;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    auto vma = parse_line(text.substr(0, end));
    if (!vma || (!maps.empty() && vma->start < maps.back().end)) {
      return make_error(ErrorKind::kDamaged, "line {} of a process's maps cannot be understood",
                        maps.size() + 1);
    }
    maps.push_back(std::move(*vma));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return maps;
}

namespace {

Result<std::vector<Vma>> read_maps_once(pid_t pid) {
  const std::string path = fmt::format("/proc/{}/maps", pid);
  auto text = read_text_file(path, kMapsLimit);
  if (!text) {
    if (text.error().kind() != ErrorKind::kNotFound) return text.error();
    return make_error(ErrorKind::kVanished, "process {} is gone", pid);
  }
  // A process that is exiting has no mappings any more.
  if (text->empty()) return make_error(ErrorKind::kVanished, "process {} has no memory any more", pid);
  auto maps = parse_maps(*text);
  if (!maps) return maps.error().with_context(path);
  return maps;
}

}  // namespace

// The kernel gives some 4 KiB of lines at a time. When mappings are joined between two reads, the next line
// begins before the last one's end.
Result<std::vector<Vma>> read_maps(pid_t pid) {
  constexpr int kTries = 20;
  for (int i = 1; i < kTries; ++i) {
    auto maps = read_maps_once(pid);
    if (maps || maps.error().kind() != ErrorKind::kDamaged) return maps;
  }
  return read_maps_once(pid);
}

std::vector<Vma> covering_vmas(const std::vector<Vma>& maps, u64 start, u64 bytes) {
  if (bytes == 0 || start + bytes < start) return {};
  const u64 end = start + bytes;
  auto vma =
      std::upper_bound(maps.begin(), maps.end(), start, [](u64 at, const Vma& v) { return at < v.end; });
  std::vector<Vma> covering;
  u64 at = start;
  for (; vma != maps.end() && at < end; ++vma) {
    if (vma->start > at) return {};
    covering.push_back(*vma);
    at = vma->end;
  }
  return at >= end ? covering : std::vector<Vma>{};
}

}  // namespace vmsieve
