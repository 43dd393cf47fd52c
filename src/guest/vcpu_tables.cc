// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/vcpu_tables.h"

namespace vmsieve {
namespace {

// CR3 bits 51:12; 11:0 are PCID or caching bits, 61 and 62 linear address masking (Intel SDM volume
// 3, section 2.5), 63 never reads as set.
constexpr u64 kCr3AddressMask = 0x000f'ffff'ffff'f000;
constexpr u64 kPtiUserBit = u64{1} << 12;
constexpr u32 kUserLevel = 3;

Error refuse(const VcpuState& vcpu, std::string_view what) {
  return make_error(ErrorKind::kIncompatible, "vCPU {} {}", vcpu.index, what);
}

// Whether it is a vCPU to look at (true), or one that waits to be started (false).
Result<bool> check_mode(const VcpuState& vcpu) {
  if (vcpu.smm) return refuse(vcpu, "is in system management mode");
  if (!vcpu.paging()) {
    if (vcpu.halted) return false;
    return refuse(vcpu, "runs with paging off: firmware or a boot loader");
  }
  if (!vcpu.long_mode()) return refuse(vcpu, "is not in 64-bit mode: no x86-64 kernel runs on it");
  if (vcpu.cpl == kUserLevel) return true;
  if (vcpu.cpl != 0)
    return refuse(vcpu, fmt::format("runs at privilege level {}, which Linux does not use", vcpu.cpl));
  if ((vcpu.rip >> 63) == 0) {
    return refuse(vcpu, fmt::format("runs privileged code at {:#x}, outside the kernel's half of the address "
                                    "space: firmware, a boot loader or a kernel being replaced",
                                    vcpu.rip));
  }
  return true;
}

std::optional<GuestPhysical> next_table(const GuestMemory& memory, PageTableRoot root, GuestVirtual address) {
  const auto table = top_level_table(memory, root, address);
  if (!table.ok()) return std::nullopt;
  return *table;
}

}  // namespace

Result<std::vector<VcpuTables>> read_vcpu_tables(const GuestMemory& memory, std::span<const VcpuState> vcpus,
                                                 GuestVirtual kernel_text) {
  if (vcpus.empty()) return Error(ErrorKind::kIncompatible, "the guest shows no vCPU");
  std::vector<VcpuTables> tables;
  for (const VcpuState& vcpu : vcpus) {
    VMSIEVE_ASSIGN(const bool started, check_mode(vcpu));
    if (!started) continue;
    const u32 levels = vcpu.la57() ? 5 : 4;
    const GuestPhysical top{vcpu.cr3 & kCr3AddressMask};
    const GuestPhysical kernel_top{top.value & ~kPtiUserBit};
    tables.push_back({vcpu.index, vcpu.cr3, levels, next_table(memory, {top, levels}, kernel_text),
                      next_table(memory, {kernel_top, levels}, kernel_text)});
  }
  if (tables.empty())
    return Error(ErrorKind::kIncompatible, "all vCPUs are halted with paging off: firmware");
  return tables;
}

}  // namespace vmsieve
