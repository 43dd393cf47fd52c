// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include "vmsieve/guest/page_tables.h"
#include "vmsieve/guest/vmcoreinfo.h"

namespace vmsieve {

/// What VMCOREINFO says of a kernel's image in memory, whatever the architecture.
struct KernelImage {
  PageTableRoot page_tables;  ///< the kernel's own: swapper_pg_dir
  GuestVirtual text;          ///< _stext
  GuestPhysical text_physical;
  u32 page_shift = 12;  ///< the kernel's page is 2^page_shift bytes: 12, 14 or 16
};

/// SYMBOL(name), or kDamaged.
Result<GuestVirtual> need_symbol(const VmcoreInfo& info, std::string_view name);

/// Where an address of the image lies if the image is mapped `offset` above where it lies. kDamaged
/// when that is no physical address, or not a multiple of `alignment`.
Result<GuestPhysical> image_physical(const VmcoreInfo& info, std::string_view symbol, u64 offset,
                                     u64 alignment);

}  // namespace vmsieve
