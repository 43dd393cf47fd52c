// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/obstacles.h"

#include <algorithm>
#include <array>
#include <optional>

#include <sys/stat.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/units.h"
#include "vmsieve/qemu/file_users.h"
#include "vmsieve/restore/option_parts.h"
#include "vmsieve/restore/option_table.h"

namespace vmsieve {

namespace {

/// Options whose whole value is a path. `data` ones are searched in QEMU's data folders too when they
/// are plain file names (QEMU system/datadir.c, qemu_find_file).
struct PathOption {
  std::string_view name;
  bool data = false;
};
constexpr auto kPathOptions = std::to_array<PathOption>({
    {"kernel"},
    {"initrd"},
    {"dtb"},
    {"shim"},
    {"bios", true},
    {"option-rom", true},
    {"pflash"},
    {"cdrom"},
    {"hda"},
    {"hdb"},
    {"hdc"},
    {"hdd"},
    {"fda"},
    {"fdb"},
    {"sd"},
    {"mtdblock"},
    {"readconfig"},
    {"L", true},
});

/// Properties that are paths of files that QEMU reads.
struct PathProperty {
  std::string_view option;
  std::string_view key;
};
constexpr auto kPathProperties = std::to_array<PathProperty>({
    {"drive", "file"},
    {"blockdev", "filename"},
    {"blockdev", "file.filename"},
    {"blockdev", "file.file.filename"},
    {"smbios", "file"},
    {"acpitable", "file"},
    {"acpitable", "data"},
    {"fw_cfg", "file"},
    {"object", "file"},
    {"fsdev", "path"},
    {"virtfs", "path"},
    {"plugin", "file"},
});

constexpr auto kDescriptorKeys =
    std::to_array<std::string_view>({"fd", "fds", "vhostfd", "vhostfds", "sock_fd"});

/// Options that make a character device out of "file:PATH".
constexpr auto kCharacterOptions =
    std::to_array<std::string_view>({"serial", "parallel", "debugcon", "virtioconsole"});

/// How to give the option anew: with its id where it has one, so that only this one is replaced.
std::string advice(const QemuOption& option) {
  const std::string name{canonical_option(option.name)};
  const std::string_view key = id_key(name);
  if (!key.empty()) {
    const auto id = OptionProperties{option.value.value_or(""), implied_key(name)}.get(key);
    if (id) return fmt::format("--set {}=...,{}={}", name, key, *id);
  }
  return fmt::format("--set {}=...", name);
}

std::string shown(const QemuOption& option) {
  return fmt::format("-{} {}", option.name, option.value.value_or(""));
}

bool exists(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0;
}

/// The path in an image's name, or nothing when the name is not one of a file (QEMU block.c,
/// path_has_protocol: what stands before a colon in the first component).
std::optional<std::string> local_file(std::string name) {
  if (name.starts_with("file:")) name = name.substr(5);
  const std::size_t colon = name.find(':');
  if (name.empty() || (colon != std::string::npos && colon < name.find('/'))) return std::nullopt;
  return name;
}

/// The path of a UNIX socket that QEMU listens on; empty when it does not.
std::string listening_path(const QemuOption& option, const OptionProperties& properties) {
  const std::string value = option.value.value_or("");
  if (option.name == "chardev" && properties.get("backend") == "socket") {
    const bool server = properties.on("server") || properties.get("server") == "";
    return server && !properties.on("abstract") ? properties.get("path").value_or("") : "";
  }
  if (!value.starts_with("unix:")) return "";
  const OptionProperties listener{value.substr(5), "path"};  // -serial unix:PATH,server=on; -vnc unix:PATH
  return option.name == "vnc" || listener.on("server") ? listener.get("path").value_or("") : "";
}

/// Files that QEMU makes, or empties if they are there (QEMU chardev/char.c, chardev/char-file.c,
/// util/log.c).
std::vector<std::string> output_files(const QemuOption& option, const OptionProperties& properties) {
  const std::string value = option.value.value_or("");
  std::vector<std::string> files;
  const bool short_form = std::ranges::find(kCharacterOptions, option.name) != kCharacterOptions.end();
  if (short_form && value.starts_with("file:")) files.push_back(value.substr(5));
  if (option.name == "D") files.push_back(value);
  if (option.name == "chardev") {
    const auto path = properties.get("path");
    if (properties.get("backend") == "file" && path && !properties.on("append")) files.push_back(*path);
    const auto log = properties.get("logfile");
    if (log && !properties.on("logappend")) files.push_back(*log);
  }
  return files;
}

class Search {
 public:
  explicit Search(const std::string& working_directory) : directory_(working_directory) {
    if (auto text = read_text_file("/proc/net/unix", 16 * kMiB)) sockets_ = std::move(*text);
  }

  void look_at(const QemuOption& option) {
    if (option.name.empty()) {
      check_file(option, option.value.value_or(""), "--set hda=PATH");
      return;
    }
    check_path_option(option);
    check_readconfig(option);
    const OptionProperties properties{option.value.value_or(""), implied_key(option.name)};
    check_descriptors(option, properties);
    check_path_properties(option, properties);
    check_sockets(option, properties);
    check_output(option, properties);
  }

  std::vector<std::string> found;

 private:
  void check_file(const QemuOption& option, const std::string& name, const std::string& solution) {
    const std::optional<std::string> path = local_file(name);
    if (!path || path->starts_with("/dev/fdset/")) return;
    const std::string resolved = resolve_path(*path, directory_);
    if (exists(resolved)) return;
    if (option.name.empty()) {
      found.push_back(fmt::format("the disk image {} is not there: put it there, or give it with {}",
                                  resolved, solution));
    } else {
      found.push_back(
          fmt::format("-{}: {} is not there: put it there, or use {}", option.name, resolved, solution));
    }
  }

  void check_path_option(const QemuOption& option) {
    const auto* entry = std::ranges::find(kPathOptions, option.name, &PathOption::name);
    if (entry == kPathOptions.end() || !option.value) return;
    const std::string& path = *option.value;
    if (entry->data && path.find('/') == std::string::npos) return;
    // -initrd may be a list for multiboot kernels.
    if (option.name == "initrd" && path.find(',') != std::string::npos) return;
    check_file(option, path, fmt::format("--set {}=PATH", option.name));
  }

  void check_readconfig(const QemuOption& option) {
    if (option.name != "readconfig" || !option.value) return;
    const auto text = read_text_file(resolve_path(*option.value, directory_), kMiB);
    if (text && ("\n" + *text).find("\n[mon") != std::string::npos) {
      found.push_back(
          fmt::format("-readconfig {} defines a monitor, which the checkpointed QEMU may still "
                      "serve: give a file without it by --set readconfig=PATH",
                      *option.value));
    }
  }

  void check_descriptors(const QemuOption& option, const OptionProperties& properties) {
    bool inherited = option.name == "add-fd" || properties.get("addr.type") == "fd";
    // A path is no list of properties: that of firmware may end in ".fd".
    const bool path = std::ranges::find(kPathOptions, option.name, &PathOption::name) != kPathOptions.end();
    for (const auto& [key, value] : properties.all()) {
      if (path) break;
      const std::string_view last = std::string_view{key}.substr(key.rfind('.') + 1);
      inherited = inherited || value.starts_with("/dev/fdset/") ||
                  std::ranges::find(kDescriptorKeys, last) != kDescriptorKeys.end();
    }
    const std::string value = option.value.value_or("");
    inherited = inherited || value.starts_with("/dev/fdset/") ||
                (option.name == "incoming" && value.starts_with("fd:"));
    if (inherited) {
      found.push_back(fmt::format("{} uses a descriptor that the checkpointed QEMU was started with: use {}",
                                  shown(option), advice(option)));
    }
  }

  void check_path_properties(const QemuOption& option, const OptionProperties& properties) {
    for (const PathProperty& entry : kPathProperties) {
      if (entry.option != option.name) continue;
      const std::optional<std::string> path = properties.get(entry.key);
      if (!path) continue;
      if (option.name != "acpitable") {
        check_file(option, *path, advice(option));
        continue;
      }
      std::size_t from = 0;
      while (from <= path->size()) {  // a list of files between colons
        const std::size_t to = std::min(path->find(':', from), path->size());
        check_file(option, path->substr(from, to - from), advice(option));
        from = to + 1;
      }
    }
    if (properties.get("qom-type") == "memory-backend-file") check_memory_file(option, properties);
  }

  /// QEMU makes the file itself, in a folder that must be there.
  void check_memory_file(const QemuOption& option, const OptionProperties& properties) {
    const std::string path = resolve_path(properties.get("mem-path").value_or(""), directory_);
    const std::size_t slash = path.rfind('/');
    if (exists(path) || slash == std::string::npos || slash == 0 || exists(path.substr(0, slash))) return;
    found.push_back(fmt::format("-{}: the folder of {} is not there: make it, or use {}", option.name, path,
                                advice(option)));
  }

  void check_sockets(const QemuOption& option, const OptionProperties& properties) {
    const std::string path = listening_path(option, properties);
    if (path.empty()) return;
    if (listens_on(sockets_, path) || listens_on(sockets_, resolve_path(path, directory_))) {
      found.push_back(fmt::format("{} listens on {}, where another process listens now: end it, or use {}",
                                  shown(option), path, advice(option)));
    }
  }

  /// What QEMU writes it opens from its beginning.
  void check_output(const QemuOption& option, const OptionProperties& properties) {
    for (const std::string& name : output_files(option, properties)) {
      const std::string path = resolve_path(name, directory_);
      if (const auto writer = writer_of(path)) {
        found.push_back(fmt::format("{} empties {}, which process {} writes to: end it, or use {}",
                                    shown(option), path, *writer, advice(option)));
      }
    }
  }

  const std::string& directory_;
  std::string sockets_;
};

}  // namespace

std::string resolve_path(const std::string& path, const std::string& working_directory) {
  if (path.starts_with('/') || working_directory.empty()) return path;
  return working_directory + (working_directory.ends_with('/') ? "" : "/") + path;
}

std::vector<std::string> outputs_of(const QemuCommandLine& command_line,
                                    const std::string& working_directory) {
  std::vector<std::string> paths;
  for (const QemuOption& option : command_line.options()) {
    if (option.name.empty()) continue;
    const OptionProperties properties{option.value.value_or(""), implied_key(option.name)};
    for (const std::string& file : output_files(option, properties))
      paths.push_back(resolve_path(file, working_directory));
    if (const std::string path = listening_path(option, properties); !path.empty())
      paths.push_back(resolve_path(path, working_directory));
  }
  // Devices are not emptied.
  std::erase_if(paths, [](const std::string& path) { return path.starts_with("/dev/"); });
  return paths;
}

bool listens_on(std::string_view proc_net_unix, const std::string& path) {
  // Num: RefCount Protocol Flags Type St Inode Path; flag 0x10000 is __SO_ACCEPTCON
  // (Linux net/unix/af_unix.c, unix_seq_show).
  while (!proc_net_unix.empty()) {
    const std::size_t end = std::min(proc_net_unix.find('\n'), proc_net_unix.size());
    const std::string_view line = proc_net_unix.substr(0, end);
    proc_net_unix.remove_prefix(std::min(end + 1, proc_net_unix.size()));
    if (line.ends_with(" " + path) && line.find(" 00010000 ") != std::string_view::npos) return true;
  }
  return false;
}

std::vector<std::string> find_obstacles(const QemuCommandLine& command_line,
                                        const std::string& working_directory) {
  Search search{working_directory};
  if (!exists(working_directory)) {
    search.found.push_back(
        fmt::format("the folder {} is not there, in which the checkpointed QEMU was started: make it",
                    working_directory));
  }
  for (const QemuOption& option : command_line.options()) search.look_at(option);
  return std::move(search.found);
}

}  // namespace vmsieve
