// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/disks/flatten.h"

#include <chrono>

#include "vmsieve/disks/disk_point.h"
#include "vmsieve/disks/image_file.h"
#include "vmsieve/disks/vm_chain.h"
#include "vmsieve/qemu/vm_lock.h"

namespace vmsieve {

namespace {

constexpr std::chrono::milliseconds kFlattenPatience{30000};

}  // namespace

Result<std::vector<Flattened>> flatten_disks(const VmAddress& vm, const ProgressFunction& progress) {
  if (vm.libvirt)
    return Error(ErrorKind::kUnsupported, "libvirt runs this VM: use virsh blockpull, which knows its XML");
  VMSIEVE_ASSIGN(const VmLock lock, VmLock::take(vm.process.pid));
  VMSIEVE_ASSIGN(const auto qmp, QmpClient::connect(vm.qmp_path));
  VMSIEVE_ASSIGN(const auto disks, read_writable_disks(*qmp));
  std::vector<Flattened> flattened;
  for (const WritableDisk& disk : disks) {
    const auto path = image_path(disk.file);
    if (!path || disk.driver != "qcow2") continue;
    const std::string absolute = path->starts_with('/') ? *path : vm.process.working_directory + "/" + *path;
    VMSIEVE_ASSIGN(const auto chain, chain_of(absolute));
    if (chain.size() == 1) continue;
    const std::string job = "vmsieve-flatten";
    VMSIEVE_TRY(qmp->execute("block-stream",
                             QmpClient::Json{{"job-id", job}, {"device", disk.node}, {"auto-dismiss", false}},
                             kFlattenPatience));
    if (auto done = wait_for_job(*qmp, job, progress); !done)
      return done.error().with_context(fmt::format("the disk {} ({})", disk.device, absolute));
    flattened.push_back({disk.device, absolute, chain.size()});
  }
  // Our nodes under them, from the lowest: QEMU refuses for those that are in use.
  VMSIEVE_ASSIGN(const VmChains chains, VmChains::read(*qmp, vm.process.working_directory));
  for (int turn = 0; turn < 2; ++turn) {
    for (const BlockNode& node : chains.nodes()) {
      if (node.name.starts_with("vmsieve-"))
        (void)qmp->execute("blockdev-del", QmpClient::Json{{"node-name", node.name}}, kFlattenPatience);
    }
  }
  return flattened;
}

}  // namespace vmsieve
