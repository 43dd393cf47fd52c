// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/unseen_writes.h"

#include <algorithm>
#include <array>

#include "vmsieve/qemu/qmp_wire.h"
#include "vmsieve/qemu/shared_mappings.h"

namespace vmsieve {

namespace {

using Json = nlohmann::json;

/// Block drivers that have the guest's memory mapped for a device for as long as they live (QEMU
/// block/nvme.c, block/blkio.c).
constexpr auto kPinningDrivers = std::to_array<std::string_view>(
    {"nvme", "nvme-io_uring", "io_uring", "virtio-blk-vfio-pci", "virtio-blk-vhost-vdpa"});

/// Has the machine a device that takes memory from the guest: a balloon (query-balloon fails without one), or
/// virtio-mem?
Result<bool> takes_memory(QmpClient& qmp) {
  const auto balloon = qmp.execute("query-balloon");
  if (balloon.ok()) return true;
  if (balloon.error().kind() != ErrorKind::kRefused) return balloon.error();
  VMSIEVE_ASSIGN(const Json devices, qmp.execute("query-memory-devices"));
  if (!devices.is_array()) return true;
  return std::any_of(devices.begin(), devices.end(), [](const Json& device) {
    return !device.is_object() || device.value("type", Json()) == "virtio-mem";
  });
}

/// A hole that is punched into a file, and a discarded page of a file that is copied on write, take the
/// content with them and leave the protection (include/linux/mm_inline.h, pte_install_uffd_wp_if_needed()),
/// so that a capture cannot tell.
Result<void> check_nothing_is_taken(AttachedVm& vm) {
  bool in_file = false;
  for (u32 block = 0; block < vm.memory->layout().blocks.size(); ++block)
    in_file = in_file || vm.memory->has_file(block);
  if (!in_file) return {};
  VMSIEVE_ASSIGN(const bool takes, takes_memory(*vm.qmp));
  if (!takes) return {};
  return Error(
      ErrorKind::kUnsupported,
      "the guest's memory is in a file, and a balloon or virtio-mem device may take it from the guest "
      "unnoticed");
}

/// The QOM types of all devices that were given on the command line or plugged.
Result<std::vector<std::string>> device_types(QmpClient& qmp) {
  std::vector<std::string> types;
  for (const char* path : {"/machine/peripheral", "/machine/peripheral-anon"}) {
    VMSIEVE_ASSIGN(const Json entries, qmp.execute("qom-list", Json{{"path", path}}));
    if (!entries.is_array())
      return make_error(ErrorKind::kDamaged, "QEMU's answer to qom-list {} is no list", path);
    for (const Json& entry : entries) types.push_back(json_string(entry, "type"));
  }
  return types;
}

Result<Json> block_nodes(QmpClient& qmp) {
  VMSIEVE_ASSIGN(Json nodes, qmp.execute("query-named-block-nodes"));
  if (!nodes.is_array())
    return make_error(ErrorKind::kDamaged, "QEMU's answer to query-named-block-nodes is no list");
  return nodes;
}

/// What has the guest's memory pinned; empty when nothing has.
Result<std::string> who_pins(QmpClient& qmp) {
  VMSIEVE_ASSIGN(const std::vector<std::string> types, device_types(qmp));
  for (const std::string& type : types)
    if (type.find("vfio") != std::string::npos) return type;
  VMSIEVE_ASSIGN(const std::string network, qmp.human("info network"));
  if (network.find("vhost-vdpa") != std::string::npos) return std::string{"vhost-vdpa"};
  VMSIEVE_ASSIGN(const Json nodes, block_nodes(qmp));
  for (const Json& node : nodes) {
    const std::string driver = json_string(node, "drv");
    if (std::ranges::find(kPinningDrivers, driver) != kPinningDrivers.end()) return driver;
  }
  return std::string{};
}

}  // namespace

Result<void> check_writes_are_seen(AttachedVm& vm) {
  VMSIEVE_ASSIGN(const std::optional<pid_t> other,
                 other_process_with_memory(vm.process.pid, vm.memory->layout()));
  if (other) {
    return make_error(
        ErrorKind::kUnsupported,
        "process {} has the guest's memory mapped too (vhost-user?), and its writes cannot be seen", *other);
  }
  VMSIEVE_TRY(check_nothing_is_taken(vm));
  VMSIEVE_ASSIGN(const std::string pins, who_pins(*vm.qmp));
  if (pins.empty()) return {};
  return make_error(ErrorKind::kUnsupported,
                    "a device ({}) has the guest's memory pinned, and its writes cannot be seen", pins);
}

Result<bool> reads_directly(QmpClient& qmp) {
  VMSIEVE_ASSIGN(const std::vector<std::string> types, device_types(qmp));
  // The kernel's own SCSI target, and disks whose commands go straight to the host's device (SG_IO), whatever
  // their cache mode.
  constexpr auto kInKernel = std::to_array<std::string_view>({"vhost-scsi", "scsi-block", "scsi-generic"});
  const auto in_kernel = [&](const std::string& type) {
    return std::ranges::any_of(kInKernel,
                               [&](std::string_view name) { return type.find(name) != std::string::npos; });
  };
  if (std::ranges::any_of(types, in_kernel)) return true;
  VMSIEVE_ASSIGN(const Json nodes, block_nodes(qmp));
  return std::ranges::any_of(nodes, [](const Json& node) {
    const auto cache = node.is_object() ? node.find("cache") : node.end();
    return cache == node.end() || json_true(*cache, "direct");
  });
}

}  // namespace vmsieve
