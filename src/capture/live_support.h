// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include <sys/types.h>

#include "vmsieve/base/result.h"
#include "vmsieve/capture/live_capture.h"
#include "vmsieve/qemu/live_memory.h"

namespace vmsieve {

/// LiveCapture::start() for a QEMU that runs: refuses memory that another process has mapped too, whose
/// writes nobody would tell us of, and makes the userfaultfd in QEMU (a millisecond in which its main thread
/// stands still). kUnsupported, kPermission or kBusy with one sentence when it is not possible; then nothing
/// is changed.
Result<std::unique_ptr<LiveCapture>> start_live_capture(const LiveMemory& memory, pid_t pid,
                                                        const LiveCapture::Options& options);

}  // namespace vmsieve
