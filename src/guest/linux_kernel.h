// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/kernel_image.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/vcpu.h"
#include "vmsieve/guest/vmcoreinfo.h"

namespace vmsieve {

/// Text by which a kernel was found, which stays where and what it is for as long as the kernel runs: its
/// VMCOREINFO, or where it has none its banner (init/version.c).
struct KernelWitness {
  GuestPhysical address;
  std::string text;
};

/// A Linux kernel found in guest memory: a value, no reference to the memory it came from.
/// Finding says nothing about being alive: prove_live() does, for one instant of a guest.
class LinuxKernel {
 public:
  /// The kernel that VMCOREINFO text at `address` speaks of. kUnsupported when it is one that this
  /// program does not handle (neither x86-64 nor arm64, other page size, encrypted memory), kDamaged
  /// when the text makes no sense. Reads no memory.
  static Result<LinuxKernel> from_vmcoreinfo(VmcoreInfo info, GuestPhysical address);

  /// The same of a description (describe_kernel()), which is nowhere in memory; `witness` is.
  static Result<LinuxKernel> from_description(VmcoreInfo info, KernelWitness witness);

  const std::string& release() const { return vmcoreinfo_.release(); }
  /// What the kernel says of itself, or what its names and types do.
  const VmcoreInfo& vmcoreinfo() const { return vmcoreinfo_; }
  /// The kernel's own page tables (swapper_pg_dir), by which its addresses are translated.
  const PageTableRoot& page_tables() const { return image_.page_tables; }
  /// The kernel's page is 2^page_shift() bytes: 12, 14 or 16.
  u32 page_shift() const { return image_.page_shift; }
  const KernelWitness& witness() const { return witness_; }
  /// Did the kernel get as far as writing VMCOREINFO (subsys_initcall)? If not, it is known by its banner,
  /// and may be as little awake as a kernel can be.
  bool has_vmcoreinfo() const { return witness_.text.starts_with("OSRELEASE="); }

  /// Checks A, B and C (docs/hazards.md): the witness is still where and what it was; the
  /// kernel's page tables map its text where it says; every vCPU runs under page tables of this
  /// kernel. kIncompatible with the reason when any of it does not hold, or when `vcpus` do not hold
  /// what a proof needs. Bounded: a few page-table walks per vCPU, microseconds. The answer is about
  /// the instant of the call, so the guest must be stopped for it to be a proof.
  Result<void> prove_live(const GuestMemory& memory, const Vcpus& vcpus) const;

  /// The same as far as `vcpus` tell: of a running guest they may not tell everything. No proof.
  Result<void> seems_live(const GuestMemory& memory, const Vcpus& vcpus) const;

  LinuxKernel(VmcoreInfo info, const KernelImage& image, KernelWitness witness)
      : vmcoreinfo_(std::move(info)), image_(image), witness_(std::move(witness)) {}

  const KernelImage& image() const { return image_; }

 private:
  VmcoreInfo vmcoreinfo_;
  KernelImage image_;
  KernelWitness witness_;
};

/// The kernel that the first vCPU's page tables map, if its own names say where its VMCOREINFO is, or with
/// its types make up for it (describe_kernel()), and it passes seems_live(): tens of milliseconds (x86-64).
/// Else searches all resident RAM for VMCOREINFO and
/// returns the kernel that passes. Should two that speak of different kernels pass, neither is believed: the
/// text can be put into a guest's memory by anybody in it. May run for tenths of a second (4 GiB) on two
/// threads, with a few MiB of memory: call it while the guest runs. What the vCPUs' registers point to is
/// read at once, before the search, for the tables of a process may be gone after it. When there is none, one
/// sentence on why: kNotFound without any VMCOREINFO, kIncompatible when what there is does not pass.
Result<LinuxKernel> find_linux_kernel(const GuestMemory& memory, const Vcpus& vcpus);

}  // namespace vmsieve
