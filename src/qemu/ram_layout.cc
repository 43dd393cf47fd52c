// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/ram_layout.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>

#include "vmsieve/qemu/guest_ram.h"
#include "vmsieve/qemu/machine.h"
#include "vmsieve/qemu/monitor_text.h"
#include "vmsieve/qemu/proc_maps.h"
#include "vmsieve/qemu/ramblock_search.h"

namespace vmsieve {

namespace {

/// The RAM block of a memory object: named by the object's id or path, or, when a device registered it
/// (virtio-mem), by the device's path, a slash and the id (migration/savevm.c, vmstate_register_ram).
Result<std::optional<u32>> block_of_object(const std::vector<RamblockLine>& lines,
                                           const MemoryObject& object) {
  const std::string suffix = "/" + object.id;
  const u64 bytes = object.bytes;
  std::optional<u32> found;
  for (u32 i = 0; i < lines.size(); ++i) {
    const RamblockLine& line = lines[i];
    if (line.name == object.id || line.name == "/objects/" + object.id) return std::optional<u32>{i};
    const bool right_size = line.total_bytes >= bytes && line.total_bytes - bytes < line.page_bytes;
    if (!line.name.ends_with(suffix) || !right_size) continue;
    if (found) {
      return make_error(ErrorKind::kUnsupported, "RAM blocks '{}' and '{}' both look like memory object '{}'",
                        lines[*found].name, line.name, object.id);
    }
    found = i;
  }
  return found;
}

/// Adds the guest-physical ranges of the object that the flat view shows as plain RAM.
Result<void> add_mappings(const std::vector<FlatRange>& ranges, const MemoryObject& object, u32 block,
                          RamLayout& layout) {
  for (const FlatRange& range : ranges) {
    if (range.kind != "ram") continue;
    auto offset = offset_in_region(range, object.id);
    if (!offset) offset = offset_in_region(range, "/objects/" + object.id);
    if (!offset) continue;
    const u64 bytes = range.last - range.first + 1;
    const RamBlock& its = layout.blocks[block];
    if (bytes == 0 || *offset > its.used_bytes || bytes > its.used_bytes - *offset) {
      return make_error(ErrorKind::kDamaged,
                        "QEMU maps {:#x} bytes at {:#x} beyond the end of RAM block '{}'", bytes,
                        range.first.value, its.name);
    }
    if (range.first.value % kPageSize != 0 || bytes % kPageSize != 0 || *offset % kPageSize != 0) {
      return make_error(ErrorKind::kUnsupported, "RAM block '{}' is mapped at {:#x} off page boundaries",
                        its.name, range.first.value);
    }
    layout.mappings.push_back({range.first, bytes, block, *offset});
  }
  return {};
}

/// Where a block starts in QEMU's memory, if the region that QEMU shows at `address` is at `offset`
/// of the block: region and block have one name, but for the path that a device puts in front.
Result<HostVirtual> ask_host(QmpClient& qmp, GuestPhysical address, u64 offset, const std::string& block) {
  VMSIEVE_ASSIGN(const std::string text, qmp.human(fmt::format("gpa2hva {:#x}", address.value)));
  auto answer = parse_gpa2hva(text);
  if (!answer) return answer.error().with_context(fmt::format("asking where RAM block '{}' lies", block));
  if (block != answer->region && !block.ends_with("/" + answer->region)) {
    return make_error(ErrorKind::kDamaged, "QEMU shows '{}' at guest address {:#x} instead of RAM block '{}'",
                      answer->region, address.value, block);
  }
  if (answer->host.value < offset) {
    return make_error(ErrorKind::kDamaged, "QEMU puts {:#x} bytes of RAM block '{}' below address {:#x}",
                      offset, block, answer->host.value);
  }
  return HostVirtual{answer->host.value - offset};
}

using Hosts = std::vector<std::optional<HostVirtual>>;

/// The addresses of all guest RAM by gpa2hva.
Result<Hosts> ask_guest_ram(QmpClient& qmp, const RamLayout& layout) {
  Hosts hosts(layout.blocks.size());
  for (const RamMapping& mapping : layout.mappings) {
    if (hosts[mapping.block]) continue;
    VMSIEVE_ASSIGN(hosts[mapping.block],
                   ask_host(qmp, mapping.address, mapping.block_offset, layout.blocks[mapping.block].name));
  }
  return hosts;
}

/// Adds the addresses of firmware that the flat view shows under the block's own name.
void ask_firmware(QmpClient& qmp, const RamLayout& layout, const std::vector<FlatRange>& ranges,
                  Hosts& hosts) {
  for (const FlatRange& range : ranges) {
    if (range.kind != "rom" && range.kind != "romd" && range.kind != "ram") continue;
    for (std::size_t i = 0; i < hosts.size(); ++i) {
      const auto offset = offset_in_region(range, layout.blocks[i].name);
      if (hosts[i] || !offset) continue;
      // A failure is no harm: the guest switches its ROM areas on and off meanwhile.
      if (auto host = ask_host(qmp, range.first, *offset, layout.blocks[i].name)) hosts[i] = *host;
    }
  }
}

Result<void> locate_blocks(QmpClient& qmp, pid_t pid, const std::vector<RamblockLine>& lines,
                           const std::vector<FlatRange>& ranges, RamLayout& layout) {
  const bool printed =
      std::all_of(lines.begin(), lines.end(), [](const auto& line) { return line.host.has_value(); });
  VMSIEVE_ASSIGN(Hosts asked, ask_guest_ram(qmp, layout));
  if (!printed) ask_firmware(qmp, layout, ranges, asked);
  VMSIEVE_ASSIGN(const std::vector<Vma> maps, read_maps(pid));
  std::vector<RamblockTarget> targets;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const auto& host = printed ? lines[i].host : asked[i];
    if (asked[i] && *asked[i] != *host) {
      return make_error(ErrorKind::kDamaged, "QEMU says that RAM block '{}' lies at {:#x} and at {:#x}",
                        lines[i].name, host->value, asked[i]->value);
    }
    targets.push_back({lines[i].name, lines[i].used_bytes, lines[i].total_bytes, host});
  }
  if (!printed) VMSIEVE_TRY(find_ramblock_hosts(pid, maps, targets));

  for (std::size_t i = 0; i < targets.size(); ++i) {
    RamBlock& block = layout.blocks[i];
    block.host = *targets[i].host;
    if (block.used_bytes > 0 && covering_vmas(maps, block.host.value, block.used_bytes).empty()) {
      return make_error(ErrorKind::kDamaged,
                        "RAM block '{}' ({:#x} bytes at {:#x}) is not mapped in process {}", block.name,
                        block.used_bytes, block.host.value, pid);
    }
  }
  return {};
}

Result<RamLayout> layout_of(QmpClient& qmp, pid_t pid, const std::string& ramblock_text) {
  VMSIEVE_ASSIGN(std::vector<RamblockLine> lines, parse_info_ramblock(ramblock_text));
  VMSIEVE_ASSIGN(const std::string mtree_text, qmp.human("info mtree -f"));
  VMSIEVE_ASSIGN(const std::vector<FlatRange> ranges, parse_info_mtree(mtree_text));
  VMSIEVE_ASSIGN(const std::vector<MemoryObject> objects, read_ram_objects(qmp));

  // A block without a name belongs to a memory object that nothing uses: migration ignores it too.
  std::erase_if(lines, [](const RamblockLine& line) { return line.name.empty(); });
  RamLayout layout;
  for (const RamblockLine& line : lines) {
    layout.blocks.push_back({line.name, line.used_bytes, line.total_bytes, line.page_bytes, {}, false});
  }
  for (const MemoryObject& object : objects) {
    VMSIEVE_ASSIGN(const auto block, block_of_object(lines, object));
    if (block) VMSIEVE_TRY(add_mappings(ranges, object, *block, layout));
  }
  if (layout.mappings.empty()) {
    return make_error(ErrorKind::kUnsupported,
                      "cannot tell which of QEMU's RAM blocks is the guest's main memory");
  }
  std::sort(layout.mappings.begin(), layout.mappings.end(),
            [](const RamMapping& a, const RamMapping& b) { return a.address < b.address; });
  for (const RamMapping& mapping : layout.mappings) layout.blocks[mapping.block].guest_ram = true;

  VMSIEVE_TRY(locate_blocks(qmp, pid, lines, ranges, layout));
  return layout;
}

}  // namespace

Result<RamLayout> read_ram_layout(QmpClient& qmp, pid_t pid) {
  constexpr int kAttempts = 5;
  for (int attempt = 1;; ++attempt) {
    VMSIEVE_ASSIGN(const std::string text, qmp.human("info ramblock"));
    auto layout = layout_of(qmp, pid, text);
    if (layout.ok() || layout.error().kind() != ErrorKind::kUnsupported || attempt == kAttempts)
      return layout;
    // Firmware that starts has blocks of ACPI tables resized (QEMU hw/i386/acpi-build.c,
    // acpi_build_update()); and while threads of QEMU's block layer come and go, its heap and its maps
    // change under the search.
    std::this_thread::sleep_for(std::chrono::milliseconds(10 << attempt));
  }
}

}  // namespace vmsieve
