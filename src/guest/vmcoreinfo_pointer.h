// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "vmsieve/base/result.h"
#include "vmsieve/guest/kallsyms.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/page_tables.h"
#include "vmsieve/guest/vmcoreinfo_search.h"

namespace vmsieve {

/// VMCOREINFO where the kernel that `tables` map says itself that it is: its variable vmcoreinfo_data
/// (kernel/vmcore_info.c) points to the text. kNotFound when it has none.
Result<VmcoreInfoCandidate> follow_vmcoreinfo_pointer(const GuestMemory& memory, const PageTableRoot& tables,
                                                      const Kallsyms& symbols);

}  // namespace vmsieve
