// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/ram_files.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <limits>
#include <optional>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/qemu/file_users.h"
#include "vmsieve/qemu/proc_maps.h"
#include "vmsieve/restore/obstacles.h"
#include "vmsieve/restore/option_parts.h"
#include "vmsieve/restore/option_table.h"

namespace vmsieve {

namespace {

std::string solution(const RamFile& file) {
  if (file.option == "mem-path") return "--set mem-path=PATH";
  return fmt::format("--set object=memory-backend-file,id={},mem-path=PATH,...", file.id);
}

bool has_mapped(pid_t pid, const RamFile& file, const struct stat& info) {
  const auto maps = read_maps(pid);
  if (!maps) return false;
  return std::ranges::any_of(*maps, [&](const Vma& vma) {
    // On btrfs and overlayfs the device number of a mapping is not that of stat(2): the name then tells.
    return vma.inode == info.st_ino && vma.has_file() &&
           ((vma.device_major == major(info.st_dev) && vma.device_minor == minor(info.st_dev)) ||
            vma.name == file.path);
  });
}

/// A process that has the file open or mapped, as far as this user may see.
std::optional<pid_t> user_of(const RamFile& file, const struct stat& info) {
  for (const pid_t pid : visible_processes()) {
    if (has_open(pid, info, OpenedFor::kAnything) || has_mapped(pid, file, info)) return pid;
  }
  return std::nullopt;
}

/// Is there anything but holes in the backend's range? A file system that cannot tell says yes.
Result<bool> holds_bytes(const RamFile& file, u64 size) {
  if (size <= file.offset) return false;
  VMSIEVE_ASSIGN(UniqueFd fd, open_file(file.path, O_RDONLY));
  const off_t data = ::lseek(fd.get(), static_cast<off_t>(file.offset), SEEK_DATA);
  if (data < 0) return errno != ENXIO;
  return file.bytes == 0 || static_cast<u64>(data) - file.offset < file.bytes;
}

Result<void> check_ram_file(const RamFile& file, RamFileCheck& check) {
  struct stat info {};
  if (::stat(file.path.c_str(), &info) != 0) {
    if (errno == ENOENT) return {};
    return errno_error(errno, fmt::format("cannot look at the RAM file {}", file.path));
  }
  if (S_ISDIR(info.st_mode)) return {};
  if (file.readonly) {
    return make_error(
        ErrorKind::kUnsupported,
        "the RAM file {} is read-only for QEMU (readonly=on), so no state can be loaded into it: "
        "use {}",
        file.path, solution(file));
  }
  if (!S_ISREG(info.st_mode)) {
    check.old_bytes_show = true;
    return {};
  }
  VMSIEVE_ASSIGN(const bool bytes, holds_bytes(file, static_cast<u64>(info.st_size)));
  if (file.persistent && bytes) {
    return make_error(
        ErrorKind::kUnsupported,
        "{} is persistent memory and holds bytes, which the checkpoint's would overwrite: copy it "
        "and use {}",
        file.path, solution(file));
  }
  if (!file.shared) {
    check.old_bytes_show = check.old_bytes_show || bytes;
    return {};
  }
  // An empty file too may be another QEMU's RAM a moment from now.
  if (const auto pid = user_of(file, info)) {
    return make_error(ErrorKind::kBusy,
                      "the RAM file {} is in use by process {}: end that process, or use {}", file.path, *pid,
                      solution(file));
  }
  if (bytes) check.to_clear.push_back(file);
  return {};
}

Result<void> clear_ram_file(const RamFile& file) {
  VMSIEVE_ASSIGN(UniqueFd fd, open_file(file.path, O_RDWR));
  VMSIEVE_ASSIGN(const u64 size, file_size(fd.get(), file.path));
  if (size <= file.offset) return {};
  const u64 bytes = file.bytes == 0 ? size - file.offset : std::min(file.bytes, size - file.offset);
  if (::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(file.offset),
                  static_cast<off_t>(bytes)) == 0) {
    return {};
  }
  const bool whole = file.offset == 0 && bytes == size;
  if (errno != EOPNOTSUPP || !whole) {
    return errno_error(errno, fmt::format("cannot make {:#x} bytes at offset {:#x} of the RAM file {} zero",
                                          bytes, file.offset, file.path));
  }
  if (::ftruncate(fd.get(), 0) != 0 || ::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) {
    return errno_error(errno, fmt::format("cannot make the RAM file {} empty", file.path));
  }
  return {};
}

}  // namespace

std::optional<u64> parse_size(std::string_view text, u64 unit) {
  u64 value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{}) return std::nullopt;
  const std::string_view suffix = text.substr(static_cast<std::size_t>(end - text.data()));
  if (suffix.size() > 1) return std::nullopt;
  if (!suffix.empty()) {
    constexpr std::string_view kSuffixes = "BKMGTPE";
    const char upper = static_cast<char>(suffix[0] & ~0x20);
    const std::size_t power = kSuffixes.find(upper);
    if (power == std::string_view::npos) return std::nullopt;
    unit = u64{1} << (10 * power);
  }
  if (value > std::numeric_limits<u64>::max() / unit) return std::nullopt;
  return value * unit;
}

std::vector<RamFile> find_ram_files(const QemuCommandLine& command_line,
                                    const std::string& working_directory) {
  std::vector<std::string> persistent_ids;
  for (const QemuOption& option : command_line.options()) {
    if (option.name != "device") continue;
    const OptionProperties device{option.value.value_or(""), implied_key("device")};
    const std::string driver = device.get("driver").value_or("");
    if (driver == "nvdimm" || driver.starts_with("virtio-pmem")) {
      persistent_ids.push_back(device.get("memdev").value_or(""));
    }
  }

  std::vector<RamFile> files;
  for (const QemuOption& option : command_line.options()) {
    if (option.name == "mem-path" && option.value) {
      files.push_back(
          {.option = option.name, .id = "", .path = resolve_path(*option.value, working_directory)});
      continue;
    }
    if (option.name != "object") continue;
    const OptionProperties object{option.value.value_or(""), implied_key("object")};
    if (object.get("qom-type") != "memory-backend-file") continue;
    RamFile file;
    file.option = option.name;
    file.id = object.get("id").value_or("");
    file.path = resolve_path(object.get("mem-path").value_or(""), working_directory);
    file.shared = object.on("share");
    file.readonly = object.on("readonly") && object.get("rom") != "off";
    file.persistent = object.on("pmem") || std::ranges::find(persistent_ids, file.id) != persistent_ids.end();
    file.offset = parse_size(object.get("offset").value_or("0"), 1).value_or(0);
    file.bytes = parse_size(object.get("size").value_or("0"), 1).value_or(0);
    files.push_back(std::move(file));
  }
  return files;
}

Result<RamFileCheck> check_ram_files(const std::vector<RamFile>& files) {
  RamFileCheck check;
  for (const RamFile& file : files) VMSIEVE_TRY(check_ram_file(file, check));
  return check;
}

Result<void> clear_ram_files(const std::vector<RamFile>& files) {
  for (const RamFile& file : files) VMSIEVE_TRY(clear_ram_file(file));
  return {};
}

}  // namespace vmsieve
