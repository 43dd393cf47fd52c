// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string_view>

#include "vmsieve/guest/kernel_image.h"
#include "vmsieve/guest/vcpu.h"

namespace vmsieve {

/// The image of an arm64 kernel. kUnsupported for one whose address translation is not understood,
/// kDamaged when the text makes no sense.
Result<KernelImage> arm64_kernel_image(const VmcoreInfo& info);

/// First half of check C, which needs no kernel. Each vCPU must run at EL0 or EL1, in the kernel's half
/// of the address space when at EL1. If system registers are known: with address translation on, by
/// this level's tables alone (no second stage, no host extensions). kIncompatible with the reason
/// otherwise: no vCPU, one in firmware or a hypervisor, or none but powered-off ones. A vCPU that is
/// powered off executes nothing, whatever its registers say, so it is passed over. Without system
/// registers nothing tells one that is off from one in firmware: then one vCPU in order is enough.
Result<void> check_arm64_modes(std::span<const Arm64Vcpu> vcpus);

/// Second half of check C, after the first. With system registers, each vCPU's own tables (TTBR1_EL1)
/// must translate its exception vectors (VBAR_EL1) and, at EL1, its program counter to the very bytes
/// that the kernel's tables give: what it executes, or will when it next enters the kernel, is this
/// kernel's. The tables need not be swapper_pg_dir: under page-table isolation, user mode runs with
/// tramp_pg_dir, which maps nothing but the vectors (arch/arm64/mm/mmu.c map_entry_trampoline()).
/// Without system registers (a guest that runs) the program counters at EL1 are compared as far as
/// they are known: no proof, but it tells a running kernel from what an earlier one left behind.
/// kIncompatible naming the vCPU of which that is not so.
Result<void> check_arm64_vcpus(const GuestMemory& memory, const KernelImage& image, std::string_view release,
                               std::span<const Arm64Vcpu> vcpus);

}  // namespace vmsieve
