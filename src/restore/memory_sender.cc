// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/memory_sender.h"

namespace vmsieve {

namespace {

u64 data_bytes(const BlockIndex& block) {
  u64 bytes = 0;
  for (const PageRun& run : block.runs) {
    if (run.kind == RunKind::kData) bytes += run.pages * kPageSize;
  }
  return bytes;
}

Result<u64> send_fills(const BlockIndex& block, u32 stream_block, bool zeros_too,
                       MigrationStreamWriter& writer) {
  u64 sent = 0;
  for (const PageRun& run : block.runs) {
    if (run.kind == RunKind::kData || (run.fill == 0 && !zeros_too)) continue;
    VMSIEVE_TRY(writer.fill_pages(stream_block, run.first_page, run.pages, run.fill));
    sent += run.pages;
  }
  return sent;
}

}  // namespace

StreamLayout stream_layout(const MemoryIndex& index) {
  StreamLayout layout;
  for (const BlockIndex& block : index.blocks) {
    if (block.name.empty()) {
      layout.of_index.push_back(StreamLayout::kNone);
      continue;
    }
    layout.of_index.push_back(static_cast<u32>(layout.blocks.size()));
    layout.blocks.push_back({block.name, block.used_bytes});
  }
  return layout;
}

Result<SentPages> send_memory(std::span<const BlockRecord> records, const MemoryIndex& index, FrameFeed& feed,
                              MigrationStreamWriter& writer, bool old_bytes_show,
                              const std::vector<bool>& elsewhere, const ProgressFunction& progress) {
  VMSIEVE_CHECK(records.size() == index.blocks.size());
  const StreamLayout layout = stream_layout(index);
  SentPages sent;
  Progress at{"loading memory", 0, 0};
  for (std::size_t i = 0; i < index.blocks.size(); ++i) {
    if (layout.of_index[i] == StreamLayout::kNone || (!elsewhere.empty() && elsewhere[i])) continue;
    at.total_bytes += data_bytes(index.blocks[i]);
    const bool zeros_too = old_bytes_show || !records[i].guest_ram;
    VMSIEVE_ASSIGN(const u64 fills, send_fills(index.blocks[i], layout.of_index[i], zeros_too, writer));
    sent.fill += fills;
  }

  for (;;) {
    VMSIEVE_ASSIGN(const auto decoded, feed.next());
    if (!decoded) return sent;
    for (const PagePlacement& placement : decoded->job->placements) {
      const auto bytes =
          decoded->bytes.subspan(placement.page_in_frame * kPageSize, placement.pages * kPageSize);
      VMSIEVE_TRY(writer.pages(layout.of_index[placement.block], placement.first_page, bytes));
      sent.data += placement.pages;
    }
    at.done_bytes = sent.data * kPageSize;
    if (progress) progress(at);
  }
}

}  // namespace vmsieve
