// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/file_users.h"

#include <charconv>

#include <dirent.h>
#include <fcntl.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/numbers.h"

namespace vmsieve {

namespace {

constexpr u64 kMostFdinfo = 64 * kKiB;

/// The entries of a folder of /proc that are numbers.
std::vector<int> numbered_entries(const std::string& folder) {
  std::vector<int> numbers;
  DIR* directory = ::opendir(folder.c_str());
  if (directory == nullptr) return numbers;
  while (const dirent* entry = ::readdir(directory)) {
    if (const auto number = parse_number<int>(entry->d_name)) numbers.push_back(*number);
  }
  ::closedir(directory);
  return numbers;
}

/// "flags:\t0100002" in /proc/PID/fdinfo/N: open(2)'s flags, octal.
bool opened_for_writing(pid_t pid, int number) {
  const auto text = read_text_file(fmt::format("/proc/{}/fdinfo/{}", pid, number), kMostFdinfo);
  if (!text) return false;
  constexpr std::string_view kKey = "flags:\t";
  const std::size_t at = text->find(kKey);
  if (at == std::string::npos) return false;
  int flags = 0;
  std::from_chars(text->data() + at + kKey.size(), text->data() + text->size(), flags, 8);
  return (flags & O_ACCMODE) != O_RDONLY;
}

}  // namespace

std::vector<pid_t> visible_processes() { return numbered_entries("/proc"); }

bool has_open(pid_t pid, const struct stat& file, OpenedFor access) {
  const std::string folder = fmt::format("/proc/{}/fd", pid);
  for (const int number : numbered_entries(folder)) {
    struct stat info {};
    if (::stat(fmt::format("{}/{}", folder, number).c_str(), &info) != 0) continue;
    if (info.st_dev != file.st_dev || info.st_ino != file.st_ino) continue;
    if (access == OpenedFor::kAnything || opened_for_writing(pid, number)) return true;
  }
  return false;
}

std::optional<pid_t> writer_of(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return std::nullopt;
  for (const pid_t pid : visible_processes()) {
    if (has_open(pid, info, OpenedFor::kWriting)) return pid;
  }
  return std::nullopt;
}

}  // namespace vmsieve
