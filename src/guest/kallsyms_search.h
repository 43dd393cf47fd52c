// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/kallsyms.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/page_tables.h"

namespace vmsieve {

/// A run of the kernel image's bytes, contiguous in guest-virtual addresses.
struct ImagePiece {
  GuestVirtual address;
  std::vector<std::byte> bytes;
};

/// More of an image is not looked at.
inline constexpr u64 kMaxImageBytes = 256 * kMiB;

/// What `tables` map of the kernel image's part of the address space: 1 GiB from 0xffffffff80000000 on
/// (__START_KERNEL_map and KERNEL_IMAGE_SIZE, arch/x86/include/asm/page_64_types.h). Pages that cannot
/// be read are left out. kUnsupported when there is more than `max_bytes` of it, kNotFound when nothing
/// is mapped there.
Result<std::vector<ImagePiece>> read_kernel_image(const GuestMemory& memory, PageTableRoot tables,
                                                  u64 max_bytes = kMaxImageBytes);

/// Places in `image`, which lies at `base`, where the tables of kallsyms may be: what scripts/kallsyms.c
/// wrote, recognised by the 256 tokens and the index that fits them byte by byte. Each place is worth
/// Kallsyms::read_at(), nothing more is certain. At most 48 places, and bounded work, whatever the image
/// holds.
std::vector<Kallsyms::Place> find_kallsyms_in(std::span<const std::byte> image, GuestVirtual base);

/// The same for all of the kernel image.
Result<std::vector<Kallsyms::Place>> find_kallsyms(const GuestMemory& memory, PageTableRoot tables);

/// The same, in less than half of the time, where the tables are no larger than those of distributions'
/// kernels and all of the image can be read: the image is looked through once, and only what is near the
/// tokens is kept. At most 192 places. When it finds none, or none that is right, find_kallsyms() may.
std::vector<Kallsyms::Place> find_kallsyms_at_once(const GuestMemory& memory, PageTableRoot tables);

}  // namespace vmsieve
