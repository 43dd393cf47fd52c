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
  /// The kernel that VMCOREINFO text at `address` speaks of. kUnsupported when it is one that this
  /// program does not handle (not x86-64, other page size, encrypted memory), kDamaged when the text
  /// makes no sense. Reads no memory.
  static Result<LinuxKernel> from_vmcoreinfo(VmcoreInfo info, GuestPhysical address);

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

  /// `root` has 4 or 5 levels.
  LinuxKernel(VmcoreInfo info, PageTableRoot root, GuestPhysical address)
      : vmcoreinfo_(std::move(info)), page_tables_(root), vmcoreinfo_address_(address) {}

 private:
  VmcoreInfo vmcoreinfo_;
  PageTableRoot page_tables_;
  GuestPhysical vmcoreinfo_address_;
};

/// Searches all resident RAM for VMCOREINFO and returns the kernel that passes prove_live(). Should
/// two that speak of different kernels pass, neither is believed: the text can be put into a guest's
/// memory by anybody in it. May run for tenths of a second (4 GiB) on two threads, with a few MiB of
/// memory: call it while the guest runs. What the vCPUs' registers point to is read at once, before
/// the search, for the tables of a process may be gone after it. kNotFound with one sentence on why
/// when there is none (no VMCOREINFO, or candidates that are not alive).
Result<LinuxKernel> find_linux_kernel(const GuestMemory& memory, std::span<const VcpuState> vcpus);

}  // namespace vmsieve
