// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/disks/holder.h"

namespace vmsieve::tidying {

namespace {

Result<Holder> reach(pid_t pid) {
  auto vm = resolve_vm(fmt::format("pid:{}", pid));
  if (!vm) return waiting(fmt::format("process {} has it open: {}", pid, vm.error().message()));
  VMSIEVE_ASSIGN(VmLock lock, VmLock::take(pid));
  VMSIEVE_ASSIGN(auto qmp, QmpClient::connect(vm->qmp_path));
  return Holder{std::move(*vm), std::move(lock), std::move(qmp)};
}

}  // namespace

Result<Holder> hold(pid_t pid, DiskNeeds& needs) {
  VMSIEVE_ASSIGN(Holder holder, reach(pid));
  VMSIEVE_TRY(needs.read_new());
  return holder;
}

}  // namespace vmsieve::tidying
