// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/capture/page_plan.h"
#include "vmsieve/capture/pipeline.h"
#include "vmsieve/qemu/live_memory.h"

namespace vmsieve {

/// Reads the pages of all chunks, of a guest that stands still, into `pipeline`, with `threads` threads;
/// returns when the last page is in a buffer. Where the buffers are hardly enough
/// (CapturePipeline::is_tight()) pages that are one repeated byte are left out at once, and the others
/// packed. When the pipeline fails it returns early without an error: finish() tells it.
Result<void> read_out(const LiveMemory& memory, CapturePipeline& pipeline, std::vector<Chunk> chunks,
                      unsigned threads, const ProgressFunction& progress);

}  // namespace vmsieve
