// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "vmsieve/base/result.h"
#include "vmsieve/guest/kernel_symbols.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/page_tables.h"
#include "vmsieve/guest/vmcoreinfo.h"

namespace vmsieve {

/// What x86-64's VMCOREINFO says of a kernel that can be understood without further help: false when lines
/// are missing that every kernel with CONFIG_SPARSEMEM writes, because the kernel was built without
/// CONFIG_CRASH_DUMP, or the text was too long for its page and is cut off.
bool describes_kernel(const VmcoreInfo& info);

/// VMCOREINFO as the x86-64 kernel that `tables` map would have written it, out of its own names and types;
/// `written` is what there is of the real one, or null, and what it says is kept. Lines whose value is not
/// to be found are left out. What the types do not tell, constants of x86-64 do: the size of memory
/// sections, and the types of free and offline pages where those are no enumeration (before 6.10,
/// include/linux/page-flags.h). Should such a constant be wrong, the counters of the zones do not fit (check
/// E). kNotFound when the kernel has no banner or no phys_base. Reads a few words.
Result<VmcoreInfo> describe_kernel(const GuestMemory& memory, const PageTableRoot& tables,
                                   const KernelSymbols& symbols, const VmcoreInfo* written);

}  // namespace vmsieve
