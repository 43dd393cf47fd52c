// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "vmsieve/base/units.h"

namespace vmsieve {

/// The registers of one x86-64 vCPU that introspection needs. Names and bits are those of the
/// Intel SDM, volume 3, sections 2.2.1 (EFER) and 2.5 (control registers).
struct X86Vcpu {
  u32 index = 0;  ///< QEMU's CPU index
  u64 cr0 = 0;
  u64 cr3 = 0;
  u64 cr4 = 0;
  u64 efer = 0;
  u64 rip = 0;
  u64 cs_base = 0;
  u32 cpl = 0;          ///< current privilege level, 0 to 3
  bool halted = false;  ///< in HLT, or waiting for SIPI
  bool smm = false;     ///< in system management mode

  bool paging() const { return (cr0 & (u64{1} << 31)) != 0; }
  bool long_mode() const { return (efer & (u64{1} << 10)) != 0; }
  bool la57() const { return (cr4 & (u64{1} << 12)) != 0; }
};

/// The system registers of an arm64 vCPU, named as in the Arm ARM (D24.2).
struct Arm64System {
  u64 sctlr_el1 = 0;
  u64 tcr_el1 = 0;
  u64 ttbr1_el1 = 0;
  u64 vbar_el1 = 0;
  u64 hcr_el2 = 0;           ///< zero on a vCPU without EL2
  bool powered_off = false;  ///< by PSCI: never started, or taken offline
};

/// One arm64 vCPU.
struct Arm64Vcpu {
  u32 index = 0;  ///< QEMU's CPU index
  u64 pc = 0;
  u32 pstate = 0;  ///< as in SPSR_EL1: bit 4 AArch32, bits 3:2 exception level
  /// Where the vCPU's own translation, at its own exception level, puts `pc`: a hint, taken from a
  /// running guest a moment after `pc` was.
  std::optional<GuestPhysical> pc_physical;
  /// Only of a stopped guest: QEMU tells them in no other way.
  std::optional<Arm64System> system;

  bool aarch32() const { return (pstate & 0x10) != 0; }
  /// AArch32 has user mode and modes above it, which no arm64 kernel runs in.
  u32 exception_level() const { return aarch32() ? ((pstate & 0xf) == 0 ? 0 : 1) : (pstate >> 2) & 3; }
};

/// Processors of which nothing is understood.
struct UnknownVcpus {
  std::string architecture;  ///< QEMU's word: "riscv64"
  u64 count = 0;
};

/// All vCPUs of a machine: they share an architecture.
using Vcpus = std::variant<std::vector<X86Vcpu>, std::vector<Arm64Vcpu>, UnknownVcpus>;

u64 vcpu_count(const Vcpus& vcpus);

}  // namespace vmsieve
