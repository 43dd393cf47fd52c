// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// One of QEMU's RAM blocks (include/exec/ramblock.h): guest RAM, video memory, firmware, ACPI
/// tables. What migration calls by `name`.
struct RamBlock {
  std::string name;                 ///< idstr, for example "pc.ram" or "/objects/ram0"
  u64 used_bytes = 0;               ///< used_length
  u64 max_bytes = 0;                ///< max_length; larger than used_bytes for resizeable blocks
  u64 host_page_bytes = kPageSize;  ///< page size of the backing (2 MiB for hugetlb)
  HostVirtual host{};               ///< start of the block in the QEMU process
  bool guest_ram =
      false;  ///< is (or backs) the machine's main memory: its omitted pages read as zero in a new QEMU
};

/// A range of guest-physical addresses backed by a block: [address, address + bytes).
struct RamMapping {
  GuestPhysical address;
  u64 bytes = 0;
  u32 block = 0;         ///< index into RamLayout::blocks
  u64 block_offset = 0;  ///< bytes into the block
};

struct RamLayout {
  std::vector<RamBlock> blocks;      ///< in QEMU's own order of `info ramblock`
  std::vector<RamMapping> mappings;  ///< RAM only (not ROM), ascending by address, not overlapping
};

}  // namespace vmsieve
