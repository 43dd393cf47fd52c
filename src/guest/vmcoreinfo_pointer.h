// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/page_tables.h"
#include "vmsieve/guest/vmcoreinfo_search.h"

namespace vmsieve {

/// VMCOREINFO where the kernel that `tables` map (x86-64) says itself that it is: its image is searched for
/// kallsyms, the variable vmcoreinfo_data (kernel/vmcore_info.c) points to the text. Reads the image, tens
/// of MiB, instead of all of RAM. kNotFound when the image or the names are not there.
Result<VmcoreInfoCandidate> follow_vmcoreinfo_pointer(const GuestMemory& memory, const PageTableRoot& tables);

}  // namespace vmsieve
