// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/inspect.h"

#include <algorithm>
#include <thread>

#include "vmsieve/base/clock.h"
#include "vmsieve/capture/attach.h"
#include "vmsieve/qemu/pause_guard.h"
#include "vmsieve/store/checkpoint_memory.h"

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

/// One mapping of RAM, page frames [at, end), by what is known of them.
void describe_by_class(const PageClasses& classes, u64 at, u64 end, Inspection& inspection) {
  auto run = std::partition_point(classes.runs.begin(), classes.runs.end(),
                                  [&](const PageClassRun& r) { return r.first.value + r.count <= at; });
  for (; run != classes.runs.end() && run->first.value < end; ++run) {
    add_run(inspection.runs, std::max(at, run->first.value), std::min(end, run->first.value + run->count),
            to_string(run->page_class));
  }
}

void describe_by_use(std::span<const PfnRange> free, u64 at, u64 end, Inspection& inspection) {
  auto range =
      std::partition_point(free.begin(), free.end(), [&](const PfnRange& r) { return r.end() <= at; });
  for (; range != free.end() && range->first.value < end; ++range) {
    const u64 first = std::max(at, range->first.value);
    const u64 stop = std::min(end, range->end());
    add_run(inspection.runs, at, first, "used");
    add_run(inspection.runs, first, stop, "free");
    at = stop;
  }
  add_run(inspection.runs, at, end, "used");
}

/// A range of guest-physical addresses; RAM, or something that only looks like it.
struct Mapped {
  u64 address = 0;
  u64 bytes = 0;
  bool guest_ram = false;
};

void describe_pages(std::span<const Mapped> mappings, std::span<const PfnRange> free,
                    Inspection& inspection) {
  for (const Mapped& mapping : mappings) {
    const u64 at = mapping.address >> kPageShift;
    const u64 end = at + (mapping.bytes >> kPageShift);
    if (!mapping.guest_ram) {
      add_run(inspection.runs, at, end, "other");
      continue;
    }
    inspection.total_bytes += mapping.bytes;
    if (inspection.classes) {
      describe_by_class(*inspection.classes, at, end, inspection);
    } else {
      describe_by_use(free, at, end, inspection);
    }
  }
  for (const PfnClassRun& run : inspection.runs) {
    if (run.name == to_string(PageClass::kFree)) inspection.free_bytes += run.count * kPageSize;
  }
  inspection.used_bytes = inspection.total_bytes - inspection.free_bytes;
}

/// What the memory in use is used for, and by whom.
void look_closer(const GuestMemory& memory, const LinuxKernel& kernel, const KernelSymbols& symbols,
                 const FreePages& free, std::size_t largest, Inspection& inspection) {
  auto processes = list_processes(memory, kernel, symbols);
  if (!processes.ok()) {
    inspection.no_classes = processes.error().message();
    return;
  }
  auto classes = classify_pages(memory, kernel, symbols, free, *processes, largest);
  if (!classes.ok()) {
    inspection.no_classes = classes.error().message();
    return;
  }
  inspection.classes = *std::move(classes);
  std::vector<GuestProcess>& all = processes->processes;
  std::erase_if(all, [](const GuestProcess& p) { return p.kernel; });
  inspection.process_count = all.size();
  std::stable_sort(all.begin(), all.end(), [](const GuestProcess& a, const GuestProcess& b) {
    return a.resident_pages() > b.resident_pages();
  });
  all.resize(std::min(all.size(), largest));
  inspection.processes = std::move(all);
}

/// Free pages of the guest as it is now; the best of several looks while it runs.
Result<FreePages> look_for_free(AttachedVm& vm, const KernelSearch& search, GuestState state,
                                unsigned threads, int tries, Inspection& inspection) {
  FreePages best;
  for (int attempt = 0; attempt < tries && !inspection.exact; ++attempt) {
    const Stopwatch classifying;
    auto free = classify(vm, search, state, {}, threads);
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
  return best;
}

}  // namespace

Result<Inspection> inspect_vm(const VmAddress& address, const InspectOptions& options) {
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
  std::unique_ptr<PauseGuard> guard;
  if (options.pause && state.running) {
    VMSIEVE_ASSIGN(guard, PauseGuard::make(*vm.qmp));
  }

  const Stopwatch finding;
  VMSIEVE_ASSIGN(const KernelSearch search, search_kernel(vm));
  inspection.find_ms = finding.ms();
  inspection.reason = search.reason;
  if (search.kernel) inspection.kernel = search.kernel->release();
  FreePages free;
  if (search.kernel) {
    const unsigned threads =
        options.threads != 0 ? options.threads : std::max(1U, std::thread::hardware_concurrency());
    const Stopwatch pause;
    if (guard) VMSIEVE_TRY(guard->stop());
    inspection.paused = guard && guard->was_running();
    VMSIEVE_ASSIGN(free,
                   look_for_free(vm, search, inspection.paused ? GuestState::kStopped : GuestState::kRunning,
                                 threads, inspection.paused ? 1 : kTries, inspection));
    if (options.classes && search.symbols) {
      look_closer(*vm.memory, *search.kernel, *search.symbols, free, options.largest, inspection);
    } else if (options.classes) {
      inspection.no_classes = "the kernel's names and types were not found";
    }
    if (guard) VMSIEVE_TRY(guard->resume());
    if (inspection.paused) inspection.pause_ms = pause.ms();
  }
  inspection.free_pages = {free.buddy, free.per_cpu, free.hugetlb, free.offline};
  std::vector<Mapped> mappings;
  const RamLayout& layout = vm.memory->layout();
  for (const RamMapping& m : layout.mappings)
    mappings.push_back({m.address.value, m.bytes, layout.blocks[m.block].guest_ram});
  describe_pages(mappings, free.runs, inspection);
  return inspection;
}

Result<Inspection> inspect_checkpoint(const CheckpointReader& checkpoint, const InspectOptions& options) {
  const Manifest& manifest = checkpoint.manifest();
  const CheckpointMemory memory(checkpoint);
  Inspection inspection;
  inspection.vm_name = manifest.vm_name;
  inspection.accelerator = manifest.accelerator;
  inspection.vcpus = manifest.vcpus;
  inspection.kernel = manifest.introspection.kernel;
  inspection.reason = manifest.introspection.reason;
  inspection.exact = manifest.introspection.used && manifest.introspection.reason.empty();
  inspection.running = manifest.was_running;
  inspection.free_pages = manifest.introspection.free_pages;
  FreePages free;
  free.runs = memory.free_pages();
  for (const PfnRange& run : free.runs) free.count += run.count;

  const auto kernel = [&]() -> Result<LinuxKernel> {
    if (manifest.introspection.vmcoreinfo.empty())
      return Error(ErrorKind::kNotFound, "the checkpoint does not say what kernel is in it");
    VMSIEVE_ASSIGN(VmcoreInfo info, VmcoreInfo::parse(manifest.introspection.vmcoreinfo));
    return LinuxKernel::from_vmcoreinfo(std::move(info),
                                        GuestPhysical{manifest.introspection.vmcoreinfo_address});
  }();
  if (options.classes) {
    const auto symbols =
        kernel.ok() ? KernelSymbols::read(memory, *kernel) : Result<KernelSymbols>(kernel.error());
    if (symbols.ok()) {
      look_closer(memory, *kernel, *symbols, free, options.largest, inspection);
    } else {
      inspection.no_classes = symbols.error().message();
    }
  }
  std::vector<Mapped> mappings;
  for (const MappingRecord& m : manifest.mappings)
    mappings.push_back({m.address, m.bytes, manifest.blocks[m.block].guest_ram});
  describe_pages(mappings, free.runs, inspection);
  return inspection;
}

}  // namespace vmsieve
