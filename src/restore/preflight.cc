// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/preflight.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/qemu/monitor_text.h"
#include "vmsieve/restore/obstacles.h"
#include "vmsieve/restore/option_parts.h"
#include "vmsieve/restore/option_table.h"

namespace vmsieve {

namespace {

bool can_run(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && ::access(path.c_str(), X_OK) == 0;
}

std::string in_path(const std::string& name) {
  const char* variable = std::getenv("PATH");
  std::string_view folders = variable != nullptr ? variable : "";
  while (!folders.empty()) {
    const std::size_t end = std::min(folders.find(':'), folders.size());
    const std::string candidate = fmt::format("{}/{}", folders.substr(0, end), name);
    if (end > 0 && can_run(candidate)) return candidate;
    folders.remove_prefix(std::min(end + 1, folders.size()));
  }
  return name;
}

std::string working_directory() {
  std::array<char, PATH_MAX> buffer{};
  return ::getcwd(buffer.data(), buffer.size()) != nullptr ? buffer.data() : "";
}

/// Major and minor number of "7.2.22".
std::optional<std::pair<u64, u64>> series(std::string_view version) {
  std::pair<u64, u64> numbers;
  const char* const end = version.data() + version.size();
  const auto major = std::from_chars(version.data(), end, numbers.first);
  if (major.ec != std::errc{} || major.ptr == end || *major.ptr != '.') return std::nullopt;
  if (std::from_chars(major.ptr + 1, end, numbers.second).ec != std::errc{}) return std::nullopt;
  return numbers;
}

Result<void> check_block(const BlockRecord& block, const std::vector<RamblockLine>& lines) {
  const auto line = std::ranges::find(lines, block.name, &RamblockLine::name);
  if (line == lines.end()) {
    return make_error(ErrorKind::kIncompatible,
                      "the checkpoint has a RAM block {} of {:#x} bytes, the new QEMU has none of that name: "
                      "the same devices and memory objects must be given",
                      block.name, block.used_bytes);
  }
  const bool resizeable = line->total_bytes != line->used_bytes || block.max_bytes != block.used_bytes;
  const bool fits = resizeable ? block.used_bytes <= line->total_bytes : block.used_bytes == line->used_bytes;
  if (fits) return {};
  return make_error(
      ErrorKind::kIncompatible,
      "RAM block {} has {:#x} bytes in the checkpoint and {:#x} in the new QEMU: the same memory "
      "size, devices and firmware must be given",
      block.name, block.used_bytes, resizeable ? line->total_bytes : line->used_bytes);
}

}  // namespace

Result<std::string> find_executable(const std::string& executable) {
  std::string path = executable;
  if (path.find('/') == std::string::npos) {
    path = in_path(path);
  } else {
    path = resolve_path(path, working_directory());
  }
  if (path.starts_with('/') && can_run(path)) return path;
  return make_error(ErrorKind::kNotFound,
                    "there is no program {} that can be run: give a QEMU with --qemu PATH", executable);
}

Result<void> check_disks(const Manifest& manifest, bool disks_as_they_are) {
  if (manifest.writable_disks.empty() || !manifest.disks.empty() || disks_as_they_are) return {};
  std::string disks;
  for (const WritableDiskRecord& disk : manifest.writable_disks) {
    disks += fmt::format("{}{} ({})", disks.empty() ? "" : ", ", disk.device, disk.file);
  }
  return make_error(
      ErrorKind::kIncompatible,
      "the checkpoint holds memory and devices, not disks, and the guest could write to {}: bring "
      "them back to what they were at {}, then use --disks-as-they-are",
      disks, manifest.created);
}

Result<void> check_accelerator(const QemuCommandLine& command_line, const std::string& kvm_device) {
  bool kvm = command_line.has("enable-kvm");
  for (const QemuOption& option : command_line.options()) {
    const std::string name{canonical_option(option.name)};
    if (name != "accel" && name != "machine") continue;
    kvm = kvm || OptionProperties{option.value.value_or(""), implied_key(name)}.get("accel") == "kvm";
  }
  if (!kvm) return {};
  const auto device = open_file(kvm_device, O_RDWR);
  if (device) return {};
  return make_error(
      ErrorKind::kIncompatible,
      "the checkpointed guest ran under KVM, which this host does not give ({}): restore it where "
      "there is KVM, or try --set accel=tcg, which cannot load KVM's own devices (kvmclock)",
      device.error().message());
}

Result<void> check_obstacles(const QemuCommandLine& command_line, const std::string& directory) {
  const std::vector<std::string> obstacles = find_obstacles(command_line, directory);
  if (obstacles.empty()) return {};
  std::string text;
  for (const std::string& obstacle : obstacles) text += (text.empty() ? "" : "; ") + obstacle;
  return make_error(ErrorKind::kIncompatible, "the recorded QEMU command line cannot be used as it is: {}",
                    text);
}

bool fills_memory_itself(const QemuCommandLine& command_line) {
  return std::ranges::any_of(command_line.options(), [](const QemuOption& option) {
    if (option.name != "device") return false;
    const OptionProperties device{option.value.value_or(""), implied_key("device")};
    return device.get("driver") == "loader";
  });
}

Result<void> check_version(const Manifest& manifest, std::string_view version) {
  const auto recorded = series(manifest.qemu_version);
  const auto given = series(version);
  if (!recorded || !given || *given >= *recorded) return {};
  return make_error(
      ErrorKind::kIncompatible,
      "the checkpoint was taken from QEMU {}, and this is QEMU {}: give one that is not older with "
      "--qemu PATH",
      manifest.qemu_version, version);
}

Result<void> check_blocks(const Manifest& manifest, QmpClient& qmp) {
  VMSIEVE_ASSIGN(const std::string text, qmp.human("info ramblock"));
  VMSIEVE_ASSIGN(const std::vector<RamblockLine> lines, parse_info_ramblock(text));
  for (const BlockRecord& block : manifest.blocks) {
    if (!block.name.empty()) VMSIEVE_TRY(check_block(block, lines));
  }
  return {};
}

Result<StreamFormat> read_stream_format(QmpClient& qmp, std::span<const std::byte> device_state) {
  VMSIEVE_ASSIGN(const auto sections, device_sections(device_state));
  VMSIEVE_ASSIGN(std::string text, qmp.human("info migrate"));
  if (!migration_global(text, "send-configuration")) {
    VMSIEVE_ASSIGN(text, qmp.human("info migrate -a"));
  }
  const bool written = has_section_footers(sections);
  const StreamFormat format{migration_global(text, "send-configuration").value_or(true),
                            migration_global(text, "send-section-footer").value_or(written)};
  if (format.section_footers != written) {
    return make_error(
        ErrorKind::kIncompatible,
        "the checkpoint's device state was written {} section footers and the new QEMU wants it {}: "
        "the same machine type and -global migration.send-section-footer must be given",
        written ? "with" : "without", format.section_footers ? "with" : "without");
  }
  return format;
}

std::optional<bool> migration_global(std::string_view info_migrate, std::string_view name) {
  const std::string key = fmt::format("{}: ", name);
  const std::size_t at = info_migrate.find(key);
  if (at == std::string_view::npos) return std::nullopt;
  const std::string_view value = info_migrate.substr(at + key.size());
  if (value.starts_with("on")) return true;
  if (value.starts_with("off")) return false;
  return std::nullopt;
}

}  // namespace vmsieve
