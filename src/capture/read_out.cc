// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/read_out.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <thread>

namespace vmsieve {

namespace {

/// A buffer with less room left is handed over: reads of single pages cost more than the room is worth.
constexpr u64 kLeastRoom = 8;

/// Reads one chunk's pages into a buffer and hands it on.
Result<void> read_chunk(const LiveMemory& memory, CapturePipeline& pipeline, Chunk chunk) {
  std::byte* buffer = pipeline.acquire();
  if (buffer == nullptr) return {};
  std::byte* to = buffer;
  for (const BlockPages& run : chunk.runs) {
    const u64 bytes = run.pages * kPageSize;
    if (auto read = memory.read_block(chunk.block, run.first_page * kPageSize, {to, bytes}); !read.ok()) {
      pipeline.cancel(buffer);
      return read.error();
    }
    to += bytes;
  }
  pipeline.submit(std::move(chunk), buffer);
  return {};
}

/// Fills buffers with data pages only, whichever chunks they are of. One thread's.
class PackingReader {
 public:
  PackingReader(const LiveMemory& memory, CapturePipeline& pipeline) : memory_(memory), pipeline_(pipeline) {}
  ~PackingReader() {
    if (buffer_ != nullptr) pipeline_.cancel(buffer_);
  }
  PackingReader(const PackingReader&) = delete;
  PackingReader& operator=(const PackingReader&) = delete;

  Result<void> read(const Chunk& chunk) {
    if (chunk.list != sorted_.list) hand_over();
    for (BlockPages left : chunk.runs) {
      while (left.pages > 0) {
        if (pipeline_.chunk_pages() - sorted_.data_pages < std::min(kLeastRoom, pipeline_.chunk_pages()))
          hand_over();
        if (buffer_ == nullptr) buffer_ = pipeline_.acquire();
        if (buffer_ == nullptr) return {};
        const u64 pages = std::min(left.pages, pipeline_.chunk_pages() - sorted_.data_pages);
        sorted_.list = chunk.list;
        VMSIEVE_TRY(append(chunk.block, {left.first_page, pages}));
        left = {left.first_page + pages, left.pages - pages};
      }
    }
    return {};
  }

  /// What is left.
  void hand_over() {
    if (sorted_.pages > 0) {
      pipeline_.submit_sorted(std::move(sorted_), std::exchange(buffer_, nullptr));
      sorted_ = {};
    }
  }

 private:
  Result<void> append(u32 block, BlockPages run) {
    std::byte* const to = buffer_ + sorted_.data_pages * kPageSize;
    VMSIEVE_TRY(memory_.read_block(block, run.first_page * kPageSize, {to, run.pages * kPageSize}));
    u64 data_pages = 0;
    for (PageRun& found : sort_pages({.block = block, .pages = run.pages, .runs = {run}}, to, data_pages)) {
      if (found.kind == RunKind::kData) found.page_in_frame += sorted_.data_pages;
      sorted_.runs.push_back(found);
    }
    sorted_.data_pages += data_pages;
    sorted_.pages += run.pages;
    return {};
  }

  const LiveMemory& memory_;
  CapturePipeline& pipeline_;
  SortedPages sorted_;
  std::byte* buffer_ = nullptr;
};

}  // namespace

Result<void> read_out(const LiveMemory& memory, CapturePipeline& pipeline, std::vector<Chunk> chunks,
                      unsigned threads, const ProgressFunction& progress) {
  const bool packs = pipeline.is_tight();
  std::atomic<std::size_t> next = 0;
  std::mutex error_mutex;
  std::optional<Error> error;
  u64 total = 0;
  for (const Chunk& chunk : chunks) total += chunk.pages * kPageSize;
  std::atomic<u64> done = 0;
  auto reader = [&](bool reports) {
    PackingReader packing(memory, pipeline);
    for (std::size_t i = next++; i < chunks.size() && !pipeline.failed(); i = next++) {
      const u64 bytes = chunks[i].pages * kPageSize;
      const auto read = packs ? packing.read(chunks[i]) : read_chunk(memory, pipeline, std::move(chunks[i]));
      if (!read.ok()) {
        const std::lock_guard lock(error_mutex);
        if (!error) error = read.error();
        next = chunks.size();
      }
      done += bytes;
      if (reports) progress({"reading", done, total});
    }
    packing.hand_over();
  };
  std::vector<std::thread> helpers;
  for (unsigned i = 1; i < threads; ++i) helpers.emplace_back(reader, false);
  reader(true);
  for (std::thread& helper : helpers) helper.join();
  if (error) return *error;
  return {};
}

}  // namespace vmsieve
