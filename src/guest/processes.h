// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/kernel_symbols.h"
#include "vmsieve/guest/linux_kernel.h"
#include "vmsieve/guest/memory.h"

namespace vmsieve {

/// A process of the guest.
struct GuestProcess {
  u32 pid = 0;
  std::string name;         ///< comm, at most 15 characters
  bool kernel = false;      ///< a kernel thread: no memory of its own
  u64 anonymous_pages = 0;  ///< resident, in page frames of 4 KiB
  u64 file_pages = 0;
  u64 shared_pages = 0;              ///< shared memory and tmpfs
  GuestVirtual page_tables;          ///< mm->pgd; 0 for a kernel thread
  std::vector<GuestVirtual> stacks;  ///< kernel stacks of its threads, the lowest address of each

  u64 resident_pages() const { return anonymous_pages + file_pages + shared_pages; }
};

struct GuestProcesses {
  std::vector<GuestProcess> processes;  ///< in the kernel's order, by start; the idle task is not among them
  u64 stack_bytes = 0;                  ///< of each kernel stack; 0 when not known
  bool complete = true;                 ///< false when a list broke off: it changed under the look, or lies
};

/// Walks the kernel's list of processes (init_task.tasks) and their threads. At most a million of each.
/// kUnsupported when the kernel's types do not show how.
Result<GuestProcesses> list_processes(const GuestMemory& memory, const LinuxKernel& kernel,
                                      const KernelSymbols& symbols);

}  // namespace vmsieve
