// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"

namespace vmsieve {

/// The byte that pages left out must read as after a restore (hazards 10 and 11), from the content of
/// some of the `count` free pages in `runs`, all of them free blocks of the buddy allocator: pages of
/// hugetlb pools and balloons are neither poisoned nor cleared when they become free.
///
/// With page poisoning every free page holds the poison, and the kernel looks when it hands one out
/// (mm/page_poison.c); with init_on_free every free page is zero and is handed out as zeroed memory
/// (mm/page_alloc.c post_alloc_hook()); with neither, the content is never looked at. So when most of
/// the sampled pages are filled with one non-zero byte, init_on_free is off and that byte is right
/// with or without poisoning; when not, poisoning is off and zero is right with or without
/// init_on_free.
Result<u8> free_page_fill(const GuestMemory& memory, std::span<const PfnRange> runs, u64 count);

}  // namespace vmsieve
