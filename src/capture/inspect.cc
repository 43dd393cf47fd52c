// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/inspect.h"

#include <algorithm>
#include <thread>

#include "vmsieve/base/clock.h"
#include "vmsieve/capture/attach.h"

namespace vmsieve {

namespace {

/// A look at a running guest takes a few milliseconds, in which a busy allocator moves: ten looks
/// find a quiet one on all but the busiest guests.
constexpr int kTries = 10;

void add_run(std::vector<PfnClassRun>& runs, u64 first, u64 end, std::string_view name) {
  if (first >= end) return;
  if (!runs.empty() && runs.back().name == name && runs.back().first_pfn + runs.back().count == first) {
    runs.back().count += end - first;
  } else {
    runs.push_back({first, end - first, std::string(name)});
  }
}

void describe_pages(const RamLayout& layout, const FreePages& free, Inspection& inspection) {
  auto range = free.runs.begin();
  for (const RamMapping& mapping : layout.mappings) {
    u64 at = mapping.address.value >> kPageShift;
    const u64 end = at + (mapping.bytes >> kPageShift);
    if (!layout.blocks[mapping.block].guest_ram) {
      add_run(inspection.runs, at, end, "other");
      continue;
    }
    inspection.total_bytes += mapping.bytes;
    while (range != free.runs.end() && range->end() <= at) ++range;
    for (auto r = range; r != free.runs.end() && r->first.value < end; ++r) {
      const u64 first = std::max(at, r->first.value);
      const u64 stop = std::min(end, r->end());
      add_run(inspection.runs, at, first, "used");
      add_run(inspection.runs, first, stop, "free");
      inspection.free_bytes += (stop - first) * kPageSize;
      at = stop;
    }
    add_run(inspection.runs, at, end, "used");
  }
  inspection.used_bytes = inspection.total_bytes - inspection.free_bytes;
}

}  // namespace

Result<Inspection> inspect_vm(const VmAddress& address, unsigned threads) {
  VMSIEVE_ASSIGN(AttachedVm vm, attach(address));
  Inspection inspection;
  inspection.vm_name = vm.process.name;
  inspection.pid = static_cast<u64>(vm.process.pid);
  inspection.qmp_path = address.qmp_path;
  VMSIEVE_ASSIGN(inspection.accelerator, read_accelerator(*vm.qmp));
  VMSIEVE_ASSIGN(const RunState state, read_run_state(*vm.qmp));
  inspection.running = state.running;
  VMSIEVE_ASSIGN(const Vcpus vcpus, read_vcpus(*vm.qmp));
  inspection.vcpus = vcpu_count(vcpus);

  const Stopwatch finding;
  VMSIEVE_ASSIGN(const KernelSearch search, search_kernel(vm));
  inspection.find_ms = finding.ms();
  inspection.reason = search.reason;
  FreePages best;
  if (search.kernel) {
    inspection.kernel = search.kernel->release();
    for (int attempt = 0; attempt < kTries && !inspection.exact; ++attempt) {
      const Stopwatch classifying;
      auto free = classify(vm, search, GuestState::kRunning, {},
                           threads != 0 ? threads : std::thread::hardware_concurrency());
      inspection.classify_ms = classifying.ms();
      if (!free) {
        if (is_peer_failure(free.error())) return free.error();
        inspection.reason = free.error().message();
        continue;
      }
      inspection.exact = free->doubts.empty();
      inspection.reason.clear();
      for (const std::string& doubt : free->doubts) {
        inspection.reason += (inspection.reason.empty() ? "" : "; ") + doubt;
      }
      if (inspection.exact || free->count >= best.count) best = std::move(*free);
    }
  }
  describe_pages(vm.memory->layout(), best, inspection);
  return inspection;
}

}  // namespace vmsieve
