// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/shared_mappings.h"

#include <unistd.h>
#include <filesystem>
#include <set>
#include <tuple>

#include "vmsieve/base/numbers.h"
#include "vmsieve/qemu/proc_maps.h"

namespace vmsieve {

namespace {

using FileId = std::tuple<u64, u64, u64>;  // device, inode

FileId id_of(const Vma& vma) { return {vma.device_major, vma.device_minor, vma.inode}; }

bool is_shared_file(const Vma& vma) { return vma.shared && vma.has_file(); }

bool maps_any(pid_t pid, const std::set<FileId>& files) {
  const auto maps = read_maps(pid);
  if (!maps.ok()) return false;  // gone, or not ours to look into
  for (const Vma& vma : *maps) {
    if (is_shared_file(vma) && files.contains(id_of(vma))) return true;
  }
  return false;
}

}  // namespace

Result<std::optional<pid_t>> other_process_with_memory(pid_t pid, const RamLayout& layout) {
  VMSIEVE_ASSIGN(const std::vector<Vma> maps, read_maps(pid));
  std::set<FileId> files;
  for (const RamBlock& block : layout.blocks) {
    for (const Vma& vma : covering_vmas(maps, block.host.value, round_up(block.used_bytes, kPageSize))) {
      if (is_shared_file(vma)) files.insert(id_of(vma));
    }
  }
  std::optional<pid_t> found;
  if (files.empty()) return found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const auto other = parse_number<pid_t>(entry.path().filename().native());
    if (!other || other == pid || other == ::getpid() || !maps_any(*other, files)) continue;
    found = other;
    break;
  }
  return found;
}

}  // namespace vmsieve
