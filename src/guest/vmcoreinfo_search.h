// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"

namespace vmsieve {

/// Text in guest memory that looks like VMCOREINFO: nothing about it is checked but how it begins.
struct VmcoreInfoCandidate {
  GuestPhysical address;  ///< where the text begins
  std::string text;       ///< up to its first NUL; of a page without a note header, at most the page
  bool note = false;      ///< found behind the header of an ELF note
};

/// More places than this that look like VMCOREINFO are refused: a guest that ran for years, warm
/// resets included, shows a handful, so more means that somebody in the guest plays tricks.
inline constexpr u64 kMaxVmcoreInfoCandidates = 64;

/// Check A: reads all resident RAM, 1 MiB at a time on each of `threads` threads, and returns the
/// page-aligned places that begin as vmcoreinfo_data ("OSRELEASE=") or vmcoreinfo_note (ELF note
/// header with the name VMCOREINFO) does; notes first, then by address. kDamaged when there are too
/// many; errors of memory.read() are passed on.
Result<std::vector<VmcoreInfoCandidate>> search_vmcoreinfo(const GuestMemory& memory, unsigned threads);

}  // namespace vmsieve
