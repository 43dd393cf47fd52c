// SPDX-License-Identifier: Apache-2.0
// What runs inside a VM, seen from outside: kernel, free memory, processes. usage: look QMP-SOCKET
#include <vmsieve/capture/attach.h>
#include <vmsieve/guest/processes.h>

#include <cstdio>

using namespace vmsieve;

Result<void> look(const std::string& vm) {
  VMSIEVE_ASSIGN(const VmAddress address, resolve_vm(vm));
  VMSIEVE_ASSIGN(AttachedVm attached, attach(address));
  VMSIEVE_ASSIGN(const KernelSearch found, search_kernel(attached));
  if (!found.kernel) return Error(ErrorKind::kNotFound, found.reason);
  fmt::print("Linux {}\n", found.kernel->release());

  const GuestMemory& memory = *attached.memory;  // a CheckpointMemory would do as well
  VMSIEVE_ASSIGN(const FreePages free, find_free_pages(memory, *found.kernel, {.threads = 2}));
  fmt::print("{} MiB free\n", free.count * kPageSize / kMiB);

  if (!found.symbols) return {};
  VMSIEVE_ASSIGN(const GuestProcesses running, list_processes(memory, *found.kernel, *found.symbols));
  for (const GuestProcess& process : running.processes)
    fmt::print("{:7} {:16} {:8} KiB\n", process.pid, process.name, process.resident_pages() * 4);
  return {};
}

int main(int argc, char** argv) {
  const Result<void> result = look(argc > 1 ? argv[1] : "");
  if (!result.ok()) fmt::print(stderr, "{}\n", result.error().message());
  return result.ok() ? 0 : 1;
}
