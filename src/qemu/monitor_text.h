// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"
#include "vmsieve/guest/vcpu.h"

namespace vmsieve {

/// Parsers of what QEMU's human monitor prints. Pure functions over hostile text: kDamaged with the
/// line that was not understood, never a guess.

/// One line of `info ramblock` (system/physmem.c, ram_block_format).
struct RamblockLine {
  std::string name;  ///< empty for a block that migration does not know (an unused memory object)
  u64 page_bytes = 0;
  u64 used_bytes = 0;
  u64 total_bytes = 0;
  std::optional<HostVirtual> host;  ///< only newer QEMUs print it
};
Result<std::vector<RamblockLine>> parse_info_ramblock(std::string_view text);

/// One range of the system memory's flat view (system/memory.c, mtree_print_flatview).
struct FlatRange {
  GuestPhysical first;
  GuestPhysical last;  ///< inclusive, as printed
  std::string kind;    ///< "ram", "rom", "romd", "i/o", ..., "nv-ram"
  std::string label;   ///< what stands behind the kind: NAME[ @OFFSET][ ACCELERATOR]
};
/// The ranges of the flat view of the address space "memory" out of `info mtree -f`, ascending and
/// not overlapping.
Result<std::vector<FlatRange>> parse_info_mtree(std::string_view text);

/// If the label is that of the memory region `name`: the offset into the region, else nothing.
std::optional<u64> offset_in_region(const FlatRange& range, std::string_view name);

/// `gpa2hva`: "Host virtual address for 0x0 (pc.ram) is 0x7f...". kNotFound when QEMU says that
/// there is no RAM at the address.
struct HostAnswer {
  std::string region;  ///< the memory region that is mapped there
  HostVirtual host;
};
Result<HostAnswer> parse_gpa2hva(std::string_view text);

/// `info registers -a` of an x86 machine (target/i386/cpu-dump.c): every vCPU, in order. A vCPU that lacks a
/// register is an error, since leaving one out would be taken for a proof about all of them.
Result<std::vector<X86Vcpu>> parse_info_registers(std::string_view text);

}  // namespace vmsieve
