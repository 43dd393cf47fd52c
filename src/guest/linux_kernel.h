// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/vcpu.h"
#include "vmsieve/guest/vmcoreinfo.h"
#include "vmsieve/guest/x86_paging.h"

namespace vmsieve {

/// A Linux kernel found in guest memory: a value, no reference to the memory it came from.
/// Finding says nothing about being alive: prove_live() does, for one instant of a guest.
class LinuxKernel {
 public:
  const std::string& release() const { return vmcoreinfo_.release(); }
  const VmcoreInfo& vmcoreinfo() const { return vmcoreinfo_; }
  /// The kernel's own page tables (swapper_pg_dir), by which its addresses are translated.
  PageTableRoot page_tables() const { return page_tables_; }
  /// Where the VMCOREINFO text was found.
  GuestPhysical vmcoreinfo_address() const { return vmcoreinfo_address_; }

  /// Checks A, B and C (docs/hazards.md): the VMCOREINFO text is still where and what it was; the
  /// kernel's page tables map its text where it says; every vCPU runs under page tables of this
  /// kernel. kIncompatible with the reason when any of it does not hold. Bounded: a few page-table
  /// walks per vCPU, microseconds. The answer is about the instant of the call, so with the guest
  /// running it is a hint, with the guest stopped a proof.
  Result<void> prove_live(const GuestMemory& memory, std::span<const VcpuState> vcpus) const;

  LinuxKernel(VmcoreInfo info, PageTableRoot root, GuestPhysical address)
      : vmcoreinfo_(std::move(info)), page_tables_(root), vmcoreinfo_address_(address) {}

 private:
  VmcoreInfo vmcoreinfo_;
  PageTableRoot page_tables_;
  GuestPhysical vmcoreinfo_address_;
};

/// Searches all resident RAM for VMCOREINFO and returns the first kernel that passes prove_live().
/// May run for tenths of a second (4 GiB): call it while the guest runs. kNotFound with one
/// sentence on why when there is none (no VMCOREINFO, or candidates that are not alive).
Result<LinuxKernel> find_linux_kernel(const GuestMemory& memory, std::span<const VcpuState> vcpus);

}  // namespace vmsieve
