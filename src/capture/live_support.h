// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "vmsieve/base/result.h"
#include "vmsieve/capture/attach.h"
#include "vmsieve/capture/live_capture.h"

namespace vmsieve {

/// LiveCapture::start() for a VM: refuses memory that another process has mapped too, whose
/// writes nobody would tell us of, and makes the userfaultfd in QEMU (a millisecond in which its main thread
/// stands still). kUnsupported, kPermission or kBusy with one sentence when it is not possible; then nothing
/// is changed.
Result<std::unique_ptr<LiveCapture>> start_live_capture(AttachedVm& vm, const LiveCapture::Options& options);

/// Protection of all RAM blocks of a VM that lets writes through and notes them, made in the same way;
/// nothing is protected yet.
Result<WriteProtection> make_noting_protection(AttachedVm& vm);

}  // namespace vmsieve
