// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/kernel_image.h"

namespace vmsieve {
namespace {

constexpr u64 kPhysicalLimit = u64{1} << 52;

}  // namespace

Result<GuestVirtual> need_symbol(const VmcoreInfo& info, std::string_view name) {
  const auto symbol = info.symbol(name);
  if (!symbol) return make_error(ErrorKind::kDamaged, "VMCOREINFO without SYMBOL({})", name);
  return *symbol;
}

Result<GuestPhysical> image_physical(const VmcoreInfo& info, std::string_view symbol, u64 offset,
                                     u64 alignment) {
  VMSIEVE_ASSIGN(const GuestVirtual address, need_symbol(info, symbol));
  const u64 physical = address.value - offset;
  if ((address.value >> 63) == 0 || physical >= kPhysicalLimit) {
    return make_error(
        ErrorKind::kDamaged,
        "VMCOREINFO's {} at {:#x}, with an image {:#x} above its memory, is not in a kernel image", symbol,
        address.value, offset);
  }
  if (physical % alignment != 0) {
    return make_error(ErrorKind::kDamaged, "VMCOREINFO's {} at {:#x} is not page-aligned", symbol, physical);
  }
  return GuestPhysical{physical};
}

}  // namespace vmsieve
