// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <vector>

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/image/manifest.h"
#include "vmsieve/image/memory_index.h"
#include "vmsieve/qemu/migration_stream.h"
#include "vmsieve/restore/frame_feed.h"

namespace vmsieve {

/// The blocks of a checkpoint that are in the migration stream: those with a name. QEMU gives names to all
/// blocks that it migrates.
struct StreamLayout {
  std::vector<StreamBlock> blocks;
  std::vector<u32> of_index;  ///< by block of the index: its block of the stream, kNone if it is not in it
  static constexpr u32 kNone = ~u32{0};
};
StreamLayout stream_layout(const MemoryIndex& index);

/// What was put into the stream.
struct SentPages {
  u64 data = 0;
  u64 fill = 0;  ///< pages of one repeated byte, zero included
};

/// Puts the pages of a checkpoint into the stream, fills first.
///  - Main memory (BlockRecord::guest_ram) reads as zeros in a new QEMU, so its zero pages, free or not,
///    stay out, unless `old_bytes_show`. Free pages that must read as another byte (the kernel's poison) are
///    sent.
///  - Nothing is sent of blocks that are brought in otherwise (`elsewhere[i]`; empty: none). `feed` has none
///  of
///    their pages.
///  - Every page of all other blocks is sent: firmware and option ROMs, video memory and ACPI tables may hold
///    bytes of the new QEMU's own.
/// Every frame was checked before its first page is sent; on an error the stream is incomplete.
Result<SentPages> send_memory(std::span<const BlockRecord> records, const MemoryIndex& index, FrameFeed& feed,
                              MigrationStreamWriter& writer, bool old_bytes_show,
                              const std::vector<bool>& elsewhere, const ProgressFunction& progress);

}  // namespace vmsieve
