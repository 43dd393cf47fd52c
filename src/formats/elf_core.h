// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>
#include <vector>

#include "vmsieve/base/units.h"
#include "vmsieve/formats/guest_file.h"

namespace vmsieve {

/// Architecture of an ELF core (elf.h, EM_*).
enum class ElfMachine : u16 { kX86 = 62, kArm64 = 183 };

/// Names and contents of notes are aligned to so many bytes (elf(5), Nhdr).
inline constexpr u64 kElfNoteAlign = 4;

/// At most so many program headers: what e_phnum can say without an escape (PN_XNUM), the note's among them.
inline constexpr std::size_t kMostElfSegments = 0xfffe;

/// Bytes in front of the first page of an ELF64 core: header, one PT_NOTE with `vmcoreinfo` (name VMCOREINFO,
/// type 0, as fs/proc/vmcore.c and QEMU's dump-guest-memory have it) unless that is empty, a PT_LOAD for each
/// segment, rounded up to whole pages. The offsets of `segments` are in the file.
u64 elf_head_bytes(std::size_t segments, std::string_view vmcoreinfo);

/// p_paddr is the guest-physical address, p_vaddr the kernel's where it is told and 0 else, p_filesz what is
/// in the file, p_memsz with the left out pages behind it, as `makedumpfile -E` writes it.
std::vector<std::byte> elf_head(ElfMachine machine, const std::vector<FileSegment>& segments,
                                std::string_view vmcoreinfo);

}  // namespace vmsieve
