// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/lazy_start.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "vmsieve/qemu/live_memory.h"
#include "vmsieve/qemu/machine.h"
#include "vmsieve/qemu/ram_layout.h"
#include "vmsieve/restore/option_parts.h"
#include "vmsieve/restore/option_table.h"

namespace vmsieve {

namespace {

/// To bring in a whole huge page takes as long as to read it.
constexpr u64 kLargestHugePage = 2 * kMiB;

struct Unfit {
  std::string_view start;  ///< of a device's or a backend's type
  std::string_view why;
};
constexpr auto kUnfitDevices = std::to_array<Unfit>({
    {"vhost-user-", "another process works on its memory"},
    {"vhost-vdpa-", "a device works on its memory"},
    {"vfio-", "a device works on its memory"},
    {"vfio-user-", "another process works on its memory"},
    {"x-pci-proxy-dev", "another process works on its memory"},
    {"ivshmem-", "other processes work on its memory"},
    {"virtio-mem-", "QEMU itself discards parts of its memory"},
});
constexpr auto kUnfitNetworks = std::to_array<std::string_view>({"vhost-user", "vhost-vdpa"});

/// The block of the new QEMU, when it is main memory there too.
const RamBlock* new_block(const RamLayout& layout, const std::string& name) {
  if (name.empty()) return nullptr;  // QEMU does not migrate it
  const auto block = std::ranges::find(layout.blocks, name, &RamBlock::name);
  return block == layout.blocks.end() || !block->guest_ram ? nullptr : &*block;
}

}  // namespace

std::string why_not_lazy(const QemuCommandLine& command_line) {
  for (const QemuOption& option : command_line.options()) {
    const std::string name{canonical_option(option.name)};
    const OptionProperties properties{option.value.value_or(""), implied_key(name)};
    if (name == "device") {
      const std::string driver = properties.get("driver").value_or("");
      for (const Unfit& unfit : kUnfitDevices) {
        if (driver.starts_with(unfit.start)) return fmt::format("{} ({})", unfit.why, driver);
      }
    }
    if (name == "netdev") {
      const std::string type = properties.get("type").value_or("");
      if (std::ranges::find(kUnfitNetworks, type) != kUnfitNetworks.end())
        return fmt::format("somebody else works on its memory ({})", type);
    }
  }
  return "";
}

Result<LazyStart> start_lazy(std::shared_ptr<const CheckpointReader> reader, const MemoryIndex& index,
                             QmpClient& qmp, const PageServer::Target& target,
                             const PageServer::Options& options) {
  VMSIEVE_ASSIGN(const RamLayout layout, read_ram_layout(qmp, target.qemu));
  VMSIEVE_ASSIGN(const auto memory, LiveMemory::open(target.qemu, layout));
  LazyStart start;
  const std::vector<BlockRecord>& records = reader->manifest().blocks;
  for (std::size_t i = 0; i < index.blocks.size(); ++i) {
    const RamBlock* block = records[i].guest_ram ? new_block(layout, index.blocks[i].name) : nullptr;
    start.brought.push_back(block != nullptr);
    if (block == nullptr) continue;
    if (block->used_bytes != index.blocks[i].used_bytes)
      return make_error(ErrorKind::kUnsupported, "RAM block {} has another size", block->name);
    if (block->host_page_bytes > kLargestHugePage)
      return make_error(ErrorKind::kUnsupported, "its memory is in pages of {} MiB",
                        block->host_page_bytes / kMiB);
    const auto number = static_cast<u32>(block - layout.blocks.data());
    const u64 pages = round_up(block->used_bytes, kPageSize) >> kPageShift;
    if (!memory->resident_block(number, 0, pages).empty())
      return make_error(ErrorKind::kUnsupported, "the new QEMU has put something into RAM block {} already",
                        block->name);
  }
  if (std::ranges::find(start.brought, true) == start.brought.end())
    return Error(ErrorKind::kUnsupported, "the checkpoint does not say which RAM block is main memory");
  MissingPlan plan(index, start.brought, layout);
  VMSIEVE_ASSIGN(start.server, PageServer::start(std::move(reader), std::move(plan), target, options));
  return start;
}

}  // namespace vmsieve
