// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/linux_kernel.h"
#include "vmsieve/pages/free_pages.h"
#include "vmsieve/qemu/live_memory.h"
#include "vmsieve/qemu/machine.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/qemu/qmp.h"

namespace vmsieve {

/// A running VM with its monitor connected and its RAM readable. The guest is not disturbed.
struct AttachedVm {
  QemuProcess process;
  std::unique_ptr<QmpClient> qmp;
  std::unique_ptr<LiveMemory> memory;
};

/// Connects to the monitor and reads the RAM layout. The process at the socket's other end must be
/// the one of `address`. A VM whose memory another process is bringing in (a lazy restore) is waited for, for
/// up to 30 s; kBusy then.
Result<AttachedVm> attach(const VmAddress& address);

/// The guest kernel, or why there is none to go by.
struct KernelSearch {
  std::optional<LinuxKernel> kernel;
  std::optional<KernelSymbols> symbols;  ///< its names and types, where it has them
  AllocatorLayout allocator;             ///< empty without symbols
  std::string reason;                    ///< one sentence when there is no kernel
};

/// Searches for the kernel, more than once while the guest runs; only failures of QEMU itself are errors.
Result<KernelSearch> search_kernel(AttachedVm& vm);

/// What the caller knows of the guest: stopped by the caller, so that a proof is possible and
/// demanded, or maybe running.
enum class GuestState { kRunning, kStopped };

/// `search` must have a kernel. Proves it live (checks A to C) and finds the free pages (D to H), at this
/// instant; of a running guest the answer is an estimate. Any doubt about the whole is an error of kind
/// kIncompatible or kDamaged; kVanished, kTimeout and kRefused mean that QEMU itself failed.
/// `earlier` as of FindOptions.
Result<FreePages> classify(AttachedVm& vm, const KernelSearch& search, GuestState state, FreeKinds kinds,
                           unsigned threads, EarlierScan* earlier = nullptr);

/// Did QEMU or its process fail, rather than the guest's structures fail to convince?
bool is_peer_failure(const Error& error);

}  // namespace vmsieve
