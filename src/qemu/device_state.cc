// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/qemu/given_descriptor.h"
#include "vmsieve/qemu/machine.h"

namespace vmsieve {

namespace {

using Json = QmpClient::Json;

/// Device state is hundreds of kilobytes; with the vmstate of a large GPU or of many devices,
/// megabytes.
constexpr u64 kDeviceStateLimit = kGiB;
constexpr std::string_view kStreamText = "QEVM";
constexpr QmpClient::Milliseconds kSaveTimeout{60000};

Result<std::vector<std::byte>> read_back(int memory) {
  VMSIEVE_ASSIGN(const u64 size, file_size(memory, "QEMU's device state"));
  if (size > kDeviceStateLimit) {
    return make_error(ErrorKind::kUnsupported,
                      "QEMU's device state has {} bytes, more than the {} that are taken", size,
                      kDeviceStateLimit);
  }
  std::vector<std::byte> state(size);
  VMSIEVE_TRY(pread_exact(memory, state, 0, "QEMU's device state"));
  const auto* text = reinterpret_cast<const char*>(state.data());
  if (!std::string_view{text, state.size()}.starts_with(kStreamText)) {
    return make_error(ErrorKind::kDamaged, "the {} bytes of QEMU's device state do not begin with QEVM",
                      size);
  }
  return state;
}

}  // namespace

Result<std::vector<std::byte>> save_device_state(QmpClient& qmp) {
  VMSIEVE_ASSIGN(const UniqueFd memory, make_memfd("vmsieve-device-state"));
  // QEMU opens /dev/fdset/N write-only and takes only a descriptor of the same access mode
  // (monitor/fds.c, monitor_fdset_dup_fd_add).
  VMSIEVE_ASSIGN(const UniqueFd writer, open_file(fmt::format("/proc/self/fd/{}", memory.get()), O_WRONLY));

  VMSIEVE_ASSIGN(const GivenDescriptor given, give_descriptor(qmp, writer.get()));

  // Nothing to do with Xen: all vmstate sections except RAM. On a stopped machine `live` true would
  // also give up the disks (migration/savevm.c, qmp_xen_save_devices_state).
  auto saved =
      qmp.execute("xen-save-devices-state",
                  Json{{"filename", fmt::format("/dev/fdset/{}", given.set)}, {"live", false}}, kSaveTimeout);
  const auto taken_back = take_back_descriptor(qmp, given);
  if (!saved) return saved.error();
  VMSIEVE_TRY(taken_back);
  return read_back(memory.get());
}

}  // namespace vmsieve
