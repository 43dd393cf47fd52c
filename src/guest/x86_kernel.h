// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "vmsieve/guest/kernel_image.h"
#include "vmsieve/guest/vcpu.h"

namespace vmsieve {

/// The image of an x86-64 kernel. kUnsupported for one with encrypted memory or another page size,
/// kDamaged when the text makes no sense.
Result<KernelImage> x86_kernel_image(const VmcoreInfo& info);

/// What one vCPU's CR3 says about the top of kernel space.
struct VcpuTables {
  u32 index = 0;
  u64 cr3 = 0;
  u32 levels = 4;
  /// The next tables that the top-level entry for kernel text points to: by CR3 as it is, and by CR3
  /// with bit 12 cleared. With page-table isolation the tables of user mode are the upper of a pair
  /// of pages and do not map kernel text, those of the kernel the lower one (arch/x86/mm/pti.c,
  /// PTI_USER_PGTABLE_BIT); without it bit 12 is part of the address. So either may be the one.
  std::optional<GuestPhysical> raw;
  std::optional<GuestPhysical> kernel_half;

  bool reaches(GuestPhysical table) const { return raw == table || kernel_half == table; }
  /// The page tables that may be the kernel's: CR3 as it is, and with bit 12 cleared where it is set.
  std::vector<PageTableRoot> roots() const;
};

/// First half of check C: each vCPU must run under an operating system in 64-bit mode, in the
/// kernel's half of the address space or in user mode. kIncompatible with the reason otherwise: no
/// vCPU, one in system management mode, one with paging off that is not halted, or none but halted
/// ones with paging off. A halted one with paging off (it waits for SIPI) is left out of the answer.
Result<std::vector<VcpuTables>> read_vcpu_tables(const GuestMemory& memory, std::span<const X86Vcpu> vcpus);

/// Check C, second half. A vCPU whose top-level entry for kernel text points to the same next table
/// as the kernel's own entry translates every address of kernel text as the kernel does (check B).
/// kIncompatible naming the vCPU of which that is not so.
Result<void> check_x86_vcpus(const GuestMemory& memory, const KernelImage& image, std::string_view release,
                             std::span<const VcpuTables> vcpus);

}  // namespace vmsieve
