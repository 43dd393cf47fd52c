// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/live_support.h"

#include <fcntl.h>

#include "vmsieve/capture/unseen_writes.h"
#include "vmsieve/qemu/given_descriptor.h"
#include "vmsieve/qemu/remote_userfaultfd.h"

namespace vmsieve {

namespace {

/// For a QEMU that has no right to a userfaultfd of its own, as under libvirt: we open the device that makes
/// them, and pass it.
Result<UniqueFd> take_by_device(AttachedVm& vm) {
  VMSIEVE_ASSIGN(const UniqueFd device, open_file("/dev/userfaultfd", O_RDWR));
  VMSIEVE_ASSIGN(const GivenDescriptor given, give_descriptor(*vm.qmp, device.get()));
  auto taken = take_userfaultfd(vm.process.pid, static_cast<int>(given.number));
  const auto taken_back = take_back_descriptor(*vm.qmp, given);
  if (!taken.ok()) return taken.error();
  VMSIEVE_TRY(taken_back);
  return std::move(*taken);
}

Result<UniqueFd> take(AttachedVm& vm) {
  auto taken = take_userfaultfd(vm.process.pid);
  if (taken.ok() || taken.error().kind() != ErrorKind::kPermission) return taken;
  auto by_device = take_by_device(vm);
  // The first reason says what is missing.
  if (!by_device.ok() && by_device.error().kind() != ErrorKind::kVanished) return taken.error();
  return by_device;
}

Result<WriteProtection> make_protection(AttachedVm& vm, WriteProtection::Mode mode) {
  VMSIEVE_TRY(check_writes_are_seen(vm));
  VMSIEVE_ASSIGN(UniqueFd userfaultfd, take(vm));
  return WriteProtection::make(std::move(userfaultfd), mode);
}

}  // namespace

Result<std::unique_ptr<LiveCapture>> start_live_capture(AttachedVm& vm, const LiveCapture::Options& options) {
  VMSIEVE_ASSIGN(WriteProtection protection, make_protection(vm, WriteProtection::Mode::kWait));
  return LiveCapture::start(*vm.memory, vm.process.pid, std::move(protection), options);
}

Result<WriteProtection> make_noting_protection(AttachedVm& vm) {
  VMSIEVE_ASSIGN(WriteProtection protection, make_protection(vm, WriteProtection::Mode::kNote));
  const MemoryUnits units(vm.memory->layout());
  for (u32 block = 0; block < units.blocks(); ++block) {
    const ByteRange range = units.block(block);
    if (range.start < range.end) VMSIEVE_TRY(protection.add(range));
  }
  return protection;
}

}  // namespace vmsieve
