// SPDX-License-Identifier: Apache-2.0
// Finding the kernel of a running guest and telling its free pages apart, beside what memory allows.
// Usage: introspection_bench QMP-SOCKET [Google Benchmark's options]

#include <benchmark/benchmark.h>

#include <iostream>

#include "vmsieve/capture/attach.h"

namespace vmsieve {
namespace {

struct Bench {
  AttachedVm vm;
  KernelSearch search;
  u64 ram_bytes = 0;
  u64 struct_page_bytes = 0;  // of all of the guest's pages

  Bench(AttachedVm attached, KernelSearch found) : vm(std::move(attached)), search(std::move(found)) {
    for (const PfnRange& range : vm.memory->ram()) ram_bytes += range.count * kPageSize;
    const u64 pages = ram_bytes >> search.kernel->page_shift();
    struct_page_bytes = pages * search.kernel->vmcoreinfo().size("page").value_or(64);
  }
};

// Of the guest's memory, so that times can be told per GiB.
void note_size(benchmark::State& state, const Bench& bench) {
  state.counters["GiB"] = static_cast<double>(bench.ram_bytes) / static_cast<double>(kGiB);
}

void find_cold(benchmark::State& state, Bench& bench) {
  for (auto _ : state) {
    const auto found = search_kernel(bench.vm);
    if (!found.ok() || !found->kernel) state.SkipWithError("the kernel was not found");
    benchmark::DoNotOptimize(found);
  }
}

// A kernel that was found before is proved again.
void find_warm(benchmark::State& state, Bench& bench) {
  for (auto _ : state) {
    const auto vcpus = read_vcpus(*bench.vm.qmp);
    if (!vcpus.ok() || !bench.search.kernel->prove_live(*bench.vm.memory, *vcpus).ok())
      state.SkipWithError("the kernel was not proved");
  }
}

void classify_once(benchmark::State& state, Bench& bench, unsigned threads) {
  u64 free = 0;
  FindOptions options{threads, bench.search.symbols ? &bench.search.allocator : nullptr, {}};
  for (auto _ : state) {
    const auto found = find_free_pages(*bench.vm.memory, *bench.search.kernel, options);
    if (!found.ok()) {
      return state.SkipWithError(found.error().message().c_str());
    }
    free = found->count;
    if (!found->doubts.empty()) state.SkipWithError(found->doubts.front().c_str());
  }
  note_size(state, bench);
  state.counters["free_MiB"] = static_cast<double>(free * kPageSize / kMiB);
}

// The limit: as many bytes as the page structures have, out of the guest, and nothing done with them.
void read_only(benchmark::State& state, Bench& bench) {
  std::vector<std::byte> buffer(2 * kMiB);
  PfnRange largest;
  for (const PfnRange& range : bench.vm.memory->ram()) {
    if (range.count > largest.count) largest = range;
  }
  for (auto _ : state) {
    for (u64 done = 0; done < bench.struct_page_bytes; done += buffer.size()) {
      const u64 at = done % (largest.count * kPageSize - buffer.size());
      if (!bench.vm.memory->read(largest.first.address() + round_down(at, kPageSize), buffer).ok())
        state.SkipWithError("guest memory was not read");
    }
  }
  note_size(state, bench);
}

Result<Bench> open_bench(const std::string& socket) {
  VMSIEVE_ASSIGN(const VmAddress address, resolve_vm(socket));
  VMSIEVE_ASSIGN(AttachedVm vm, attach(address));
  VMSIEVE_ASSIGN(KernelSearch search, search_kernel(vm));
  if (!search.kernel) return Error(ErrorKind::kNotFound, search.reason);
  return Bench(std::move(vm), std::move(search));
}

int run(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (argc != 2) {
    std::cerr << "usage: introspection_bench QMP-SOCKET [OPTION]...\n";
    return 2;
  }
  auto bench = open_bench(argv[1]);
  if (!bench.ok()) {
    std::cerr << bench.error().message() << '\n';
    return 1;
  }
  const auto add = [&](const char* name, auto function) {
    const auto run_it = [&bench, function](benchmark::State& state) { function(state, *bench); };
    benchmark::RegisterBenchmark(name, run_it)->Unit(benchmark::kMillisecond)->UseRealTime();
  };
  add("find/cold", find_cold);
  add("find/warm", find_warm);
  add("classify/1_thread", [](benchmark::State& state, Bench& b) { classify_once(state, b, 1); });
  add("classify/2_threads", [](benchmark::State& state, Bench& b) { classify_once(state, b, 2); });
  add("read_page_structures/1_thread", read_only);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace vmsieve

int main(int argc, char** argv) { return vmsieve::run(argc, argv); }
