// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/attach.h"

#include <thread>

#include "vmsieve/base/clock.h"
#include "vmsieve/qemu/vm_lock.h"

namespace vmsieve {

namespace {

constexpr std::chrono::seconds kFillPatience{30};

/// The registers of a vCPU that runs may be read in the middle of a change (QEMU's TCG enters the kernel in
/// several steps), and the tables of a process that ends are gone before they are looked at. A guest that is
/// not to be found now is looked for again, as long as that is quick.
constexpr int kSearchTries = 5;
constexpr double kSearchAgainWithinMs = 1000;
constexpr std::chrono::milliseconds kSearchPause{5};

/// kIncompatible or kNotFound as of find_linux_kernel().
Result<LinuxKernel> find_by_registers(AttachedVm& vm) {
  VMSIEVE_ASSIGN(const Vcpus vcpus, read_vcpus(*vm.qmp));
  return find_linux_kernel(*vm.memory, vcpus);
}

Result<LinuxKernel> find_by_several_looks(AttachedVm& vm) {
  VMSIEVE_ASSIGN(const RunState state, read_run_state(*vm.qmp));
  const Stopwatch watch;
  for (int attempt = 1;; ++attempt) {
    auto kernel = find_by_registers(vm);
    if (kernel.ok() || kernel.error().kind() != ErrorKind::kIncompatible || !state.running ||
        attempt == kSearchTries || watch.ms() > kSearchAgainWithinMs)
      return kernel;
    std::this_thread::sleep_for(kSearchPause);
  }
}

}  // namespace

Result<AttachedVm> attach(const VmAddress& address) {
  // Where memory is still to come, a file's holes read as zeros.
  VMSIEVE_TRY(VmLock::wait_for_fill(address.process.pid, kFillPatience));
  AttachedVm vm;
  vm.process = address.process;
  VMSIEVE_ASSIGN(vm.qmp, QmpClient::connect(address.qmp_path));
  const auto peer = vm.qmp->peer_pid();
  // A socket handed down by a supervisor shows the supervisor's pid: only a QEMU that is somebody
  // else's is a reason to stop.
  if (peer.ok() && *peer != vm.process.pid) {
    if (auto other = read_qemu_process(*peer); other.ok()) {
      return make_error(ErrorKind::kNotFound, "the monitor {} belongs to process {}, not to process {}",
                        address.qmp_path, *peer, vm.process.pid);
    }
  }
  VMSIEVE_ASSIGN(RamLayout layout, read_ram_layout(*vm.qmp, vm.process.pid));
  VMSIEVE_ASSIGN(vm.memory, LiveMemory::open(vm.process.pid, std::move(layout)));
  return vm;
}

bool is_peer_failure(const Error& error) {
  switch (error.kind()) {
    case ErrorKind::kVanished:
    case ErrorKind::kTimeout:
    case ErrorKind::kRefused:
    case ErrorKind::kPermission:
    case ErrorKind::kIo: return true;
    default: return false;
  }
}

Result<KernelSearch> search_kernel(AttachedVm& vm) {
  auto kernel = find_by_several_looks(vm);
  if (!kernel) {
    if (is_peer_failure(kernel.error())) return kernel.error();
    KernelSearch none;
    none.reason = kernel.error().message();
    return none;
  }
  KernelSearch search;
  search.kernel = std::move(*kernel);
  if (auto symbols = KernelSymbols::read(*vm.memory, *search.kernel); symbols.ok()) {
    search.allocator = AllocatorLayout::read(*vm.memory, *search.kernel, *symbols);
    search.symbols = std::move(*symbols);
  }
  return search;
}

Result<FreePages> classify(AttachedVm& vm, const KernelSearch& search, GuestState state, FreeKinds kinds,
                           unsigned threads, EarlierScan* earlier) {
  VMSIEVE_ASSIGN(const Vcpus vcpus, read_vcpus(*vm.qmp));
  VMSIEVE_TRY(state == GuestState::kStopped ? search.kernel->prove_live(*vm.memory, vcpus)
                                            : search.kernel->seems_live(*vm.memory, vcpus));
  FindOptions options{threads, nullptr, kinds, earlier};
  if (search.symbols) options.allocator = &search.allocator;
  return find_free_pages(*vm.memory, *search.kernel, options);
}

}  // namespace vmsieve
