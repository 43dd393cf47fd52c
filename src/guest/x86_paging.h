// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "vmsieve/guest/page_tables.h"

namespace vmsieve {

/// The x86-64 page tables at `top` (Intel SDM volume 3, section 4.5), of 4 or 5 levels.
PageTableRoot x86_page_tables(GuestPhysical top, u32 levels);

}  // namespace vmsieve
