// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "vmsieve/base/units.h"

namespace vmsieve {

/// The registers of one x86-64 vCPU that introspection needs. Names and bits are those of the
/// Intel SDM, volume 3, sections 2.2.1 (EFER) and 2.5 (control registers).
struct VcpuState {
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

}  // namespace vmsieve
