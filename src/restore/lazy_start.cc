// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/lazy_start.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "vmsieve/restore/fresh_memory.h"
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
  VMSIEVE_ASSIGN(FreshMemory fresh, find_fresh_memory(reader->manifest(), index, qmp, target.qemu));
  for (std::size_t i = 0; i < fresh.brought.size(); ++i) {
    const RamBlock& block = fresh.layout.blocks[fresh.block[i]];
    if (fresh.brought[i] && block.host_page_bytes > kLargestHugePage)
      return make_error(ErrorKind::kUnsupported, "its memory is in pages of {} MiB",
                        block.host_page_bytes / kMiB);
  }
  LazyStart start{nullptr, std::move(fresh.brought)};
  MissingPlan plan(index, start.brought, fresh.layout);
  VMSIEVE_ASSIGN(start.server, PageServer::start(std::move(reader), std::move(plan), target, options));
  return start;
}

}  // namespace vmsieve
