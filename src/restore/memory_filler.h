// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/image/memory_index.h"
#include "vmsieve/restore/fresh_memory.h"
#include "vmsieve/restore/memory_sender.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve {

/// Writes the pages of a checkpoint straight into a new QEMU that waits for its migration stream, on as many
/// threads as keep `threads` cores and the disk at work: through the stream QEMU would take them in one, and
/// each by a copy more. Every frame is checked before a page of it is written. Pages that read as zeros are
/// left as they are. Where the host gives huge pages, the new memory gets them.
///
/// kPermission when this host does not let us write to the process; nothing is written then. After any other
/// error the new QEMU is of no use.
Result<SentPages> fill_memory(const CheckpointReader& reader, const MemoryIndex& index,
                              const FreshMemory& fresh, pid_t qemu, unsigned threads,
                              const ProgressFunction& progress);

}  // namespace vmsieve
