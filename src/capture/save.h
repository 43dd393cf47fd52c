// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/manifest.h"
#include "vmsieve/pages/free_pages.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

struct SaveOptions {
  Compression compression;
  bool introspection = true;      ///< false: every page is saved
  FreeKinds kinds{};              ///< of free pages that are left out
  unsigned threads = 0;           ///< 0: one for each core
  u64 buffer_bytes = 256 * kMiB;  ///< guest pages held in memory at most
};

/// Where the pause went, milliseconds.
struct PauseParts {
  double stop_ms = 0;
  double classify_ms = 0;  ///< vCPU registers, proof of the kernel, page structures
  double device_ms = 0;
  double plan_ms = 0;  ///< which pages to read: residency
  double read_ms = 0;
  double resume_ms = 0;
};

struct SaveReport {
  Manifest manifest;
  PauseParts pause;
  std::vector<std::string> warnings;  ///< for the user, one sentence each
};

/// Takes a checkpoint of a running (or stopped) VM into `store`: paused mode, the guest is stopped
/// until its used pages are in this program's buffers.
///
/// On any error nothing of the checkpoint remains in the store, and a guest that ran runs on; the
/// same when this process is killed, by the pause guard and the next Store::sweep(). Blocks until
/// the checkpoint is durable. One save per VM at a time (QEMU's monitor takes one client).
/// Forks a process, so call it before starting threads that hold locks.
Result<SaveReport> save_paused(const VmAddress& vm, Store& store, const SaveOptions& options,
                               const ProgressFunction& progress);

}  // namespace vmsieve
