// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/pipeline.h"

#include <sys/mman.h>
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "vmsieve/base/thread_priority.h"
#include "vmsieve/capture/base_layer.h"

namespace vmsieve {

Result<std::unique_ptr<BufferPool>> BufferPool::make(u64 count, u64 bytes) {
  VMSIEVE_ASSIGN(AnonymousMemory memory, AnonymousMemory::make(count * bytes));
  // Huge pages make the prefault 10 times cheaper where the host gives them; no matter if not.
  ::madvise(memory.data(), memory.size(), MADV_HUGEPAGE);
  return std::unique_ptr<BufferPool>(new BufferPool(std::move(memory), count, bytes));
}

BufferPool::BufferPool(AnonymousMemory memory, u64 count, u64 bytes)
    : memory_(std::move(memory)), count_(count), bytes_(bytes) {
  free_.reserve(count);
  // Taken from the back: the first buffers come first, those that prefault() made resident.
  for (u64 i = count; i > 0; --i) free_.push_back(memory_.data() + (i - 1) * bytes_);
}

void BufferPool::prefault(u64 bytes, unsigned threads) {
  constexpr u64 kHugePage = 2 * kMiB;
  const u64 size = std::min(round_up(bytes, bytes_), count_ * bytes_);
  std::atomic<u64> next = 0;
  const auto touch = [&] {
    for (u64 from = next.fetch_add(kHugePage); from < size; from = next.fetch_add(kHugePage)) {
      const u64 end = std::min(from + kHugePage, size);
      for (u64 offset = from; offset < end; offset += kPageSize) memory_.data()[offset] = std::byte{0};
    }
  };
  std::vector<std::thread> helpers;
  for (unsigned i = 1; i < threads && size > kHugePage; ++i) helpers.emplace_back(touch);
  touch();
  for (std::thread& helper : helpers) helper.join();
}

std::byte* BufferPool::try_acquire() {
  const std::lock_guard lock(mutex_);
  return take();
}

std::byte* BufferPool::acquire(u64 reserve) {
  std::unique_lock lock(mutex_);
  released_.wait(lock, [&] { return closed_ || free_.size() > reserve; });
  return take();
}

std::byte* BufferPool::acquire_until(std::chrono::steady_clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  released_.wait_until(lock, deadline, [&] { return closed_ || !free_.empty(); });
  return take();
}

std::byte* BufferPool::take() {
  if (closed_ || free_.empty()) return nullptr;
  std::byte* buffer = free_.back();
  free_.pop_back();
  return buffer;
}

void BufferPool::release(std::byte* buffer) {
  const std::lock_guard lock(mutex_);
  free_.push_back(buffer);
  released_.notify_all();  // not everybody who waits is content with one
}

void BufferPool::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  released_.notify_all();
}

std::vector<BlockPages> keep_pages(Chunk& chunk, std::byte* buffer,
                                   const std::function<bool(u64 page, const std::byte* bytes)>& keep) {
  const auto append = [](std::vector<BlockPages>& runs, u64 page) {
    if (!runs.empty() && runs.back().first_page + runs.back().pages == page) {
      ++runs.back().pages;
    } else {
      runs.push_back({page, 1});
    }
  };
  std::vector<BlockPages> kept;
  std::vector<BlockPages> dropped;
  u64 pages = 0;
  const std::byte* from = buffer;
  for (const BlockPages& run : chunk.runs) {
    for (u64 page = run.first_page; page < run.first_page + run.pages; ++page, from += kPageSize) {
      if (!keep(page, from)) {
        append(dropped, page);
        continue;
      }
      std::byte* const to = buffer + pages * kPageSize;
      if (to != from) std::memcpy(to, from, kPageSize);
      ++pages;
      append(kept, page);
    }
  }
  chunk.runs = std::move(kept);
  chunk.pages = pages;
  return dropped;
}

std::vector<PageRun> sort_pages(const Chunk& chunk, std::byte* buffer, u64& data_pages) {
  std::vector<PageRun> runs;
  data_pages = 0;
  const std::byte* from = buffer;
  for (const BlockPages& source : chunk.runs) {
    for (u64 i = 0; i < source.pages; ++i, from += kPageSize) {
      const u64 page = source.first_page + i;
      const auto fill = uniform_byte({from, kPageSize});
      PageRun run{.first_page = page,
                  .pages = 1,
                  .kind = fill ? RunKind::kFill : RunKind::kData,
                  .fill = fill.value_or(0),
                  .page_in_frame = fill ? 0 : data_pages};
      if (!fill) {
        std::byte* to = buffer + data_pages * kPageSize;
        if (to != from) std::memcpy(to, from, kPageSize);
        ++data_pages;
      }
      // Within one chunk the data pages of adjoining pages adjoin in the frame as well.
      if (!runs.empty() && runs.back().first_page + runs.back().pages == page &&
          runs.back().kind == run.kind && runs.back().fill == run.fill) {
        ++runs.back().pages;
      } else {
        runs.push_back(run);
      }
    }
  }
  return runs;
}

Result<std::unique_ptr<CapturePipeline>> CapturePipeline::make(MemoryObjectWriter& writer, std::size_t lists,
                                                               const Options& options) {
  VMSIEVE_CHECK(options.threads > 0 && options.chunk_pages > 0 &&
                options.chunk_pages * kPageSize <= kMaxFrameBytes);
  const u64 chunk_bytes = options.chunk_pages * kPageSize;
  // Two buffers a worker at the least, or reading and encoding would take turns.
  const u64 buffers = std::max<u64>(options.buffer_bytes / chunk_bytes, u64{2} * options.threads);
  VMSIEVE_ASSIGN(auto pool, BufferPool::make(buffers, chunk_bytes));
  return std::unique_ptr<CapturePipeline>(
      new CapturePipeline(writer, lists, options, std::move(pool), buffers));
}

CapturePipeline::CapturePipeline(MemoryObjectWriter& writer, std::size_t lists, const Options& options,
                                 std::unique_ptr<BufferPool> pool, u64 pool_buffers)
    : writer_(writer),
      options_(options),
      pool_(std::move(pool)),
      pool_bytes_(pool_buffers * options.chunk_pages * kPageSize),
      filled_(pool_buffers),
      encoded_(u64{2} * options.threads) {
  outcome_.runs.resize(lists);
  outcome_.same.resize(lists);
  for (unsigned i = 0; i < options_.threads; ++i) workers_.emplace_back([this] { work(); });
  writing_ = std::thread([this] { write(); });
}

CapturePipeline::~CapturePipeline() {
  if (writing_.joinable()) {
    fail(Error(ErrorKind::kIo, "the save was abandoned"));
    join();
  }
}

// A pool that is filled once and again is made resident by the way, while the disk is at work.
void CapturePipeline::expect(u64 bytes) {
  if (bytes / 2 > pool_bytes_) {
    open_gate();
    return;
  }
  is_tight_ = bytes > pool_bytes_ && options_.base == nullptr;
  pool_->prefault(bytes, options_.threads);
}

std::byte* CapturePipeline::acquire() {
  if (failed()) return nullptr;
  if (std::byte* buffer = pool_->try_acquire()) return buffer;
  open_gate();
  return pool_->acquire();
}

std::byte* CapturePipeline::acquire_in_background() {
  if (failed()) return nullptr;
  return pool_->acquire(std::min(std::max<u64>(1, pool_->count() / 8), pool_->count() - 1));
}

std::byte* CapturePipeline::acquire_until(std::chrono::steady_clock::time_point deadline) {
  if (failed()) return nullptr;
  return pool_->acquire_until(deadline);
}

void CapturePipeline::submit(Chunk chunk, std::byte* buffer) {
  filled_.push({std::move(chunk), buffer, std::nullopt});
}

void CapturePipeline::submit_sorted(SortedPages pages, std::byte* buffer) {
  VMSIEVE_CHECK(options_.base == nullptr && pages.data_pages <= options_.chunk_pages);
  filled_.push({{}, buffer, std::move(pages)});
}

void CapturePipeline::open_gate() {
  const std::lock_guard lock(gate_mutex_);
  gate_open_ = true;
  gate_opened_.notify_all();
}

void CapturePipeline::fail(const Error& error) {
  {
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = error;
  }
  failed_ = true;
  pool_->close();
  filled_.close();
  encoded_.close();
  open_gate();
}

SortedPages CapturePipeline::sort(Filled& filled, BaseContent* base, std::vector<BlockPages>& same) {
  if (filled.sorted) return std::move(*filled.sorted);
  const u32 block = filled.chunk.block;
  SortedPages sorted{.list = filled.chunk.list, .pages = filled.chunk.pages, .runs = {}, .data_pages = 0};
  if (base != nullptr && options_.compared_blocks[block]) {
    same = keep_pages(filled.chunk, filled.buffer, [&](u64 page, const std::byte* bytes) {
      return !base->same(block, page, {bytes, kPageSize});
    });
  }
  sorted.runs = sort_pages(filled.chunk, filled.buffer, sorted.data_pages);
  return sorted;
}

void CapturePipeline::work() {
  lower_priority(options_.nice);
  {
    std::unique_lock lock(gate_mutex_);
    gate_opened_.wait(lock, [&] { return gate_open_; });
  }
  FrameEncoder encoder(options_.compression);
  std::optional<BaseContent> base;
  if (options_.base != nullptr) base.emplace(*options_.base);
  while (auto filled = filled_.pop()) {
    if (failed()) break;
    Encoded encoded;
    SortedPages sorted = sort(*filled, base ? &*base : nullptr, encoded.same);
    encoded.list = sorted.list;
    encoded.runs = std::move(sorted.runs);
    if (sorted.data_pages > 0) {
      encoded.frame = encoder.encode_or_keep({filled->buffer, sorted.data_pages * kPageSize}, encoded.bytes);
      if (encoded.frame.codec == Codec::kNone) encoded.buffer = filled->buffer;
    }
    if (encoded.buffer == nullptr) pool_->release(filled->buffer);
    done_pages_ += sorted.pages;
    if (!encoded_.push(std::move(encoded))) break;
  }
}

Result<u64> CapturePipeline::add_frame(Encoded& encoded) {
  if (encoded.buffer == nullptr) return writer_.add_frame(encoded.frame, encoded.bytes);
  return writer_.add_frame_in_place(encoded.frame, {encoded.buffer, encoded.frame.stored_bytes},
                                    [this, buffer = encoded.buffer] { pool_->release(buffer); });
}

// Buffers come back when what is in them was written: whoever waits for one must not wait for us.
std::optional<CapturePipeline::Encoded> CapturePipeline::next_encoded() {
  for (;;) {
    if (auto encoded = encoded_.try_pop()) return encoded;
    if (!writer_.settle_one()) return encoded_.pop();
  }
}

void CapturePipeline::write() {
  lower_priority(options_.nice);
  while (auto encoded = next_encoded()) {
    if (failed()) break;
    u64 frame_index = 0;
    if (encoded->frame.stored_bytes != 0) {
      auto added = add_frame(*encoded);
      if (!added) {
        fail(added.error());
        break;
      }
      frame_index = *added;
    }
    auto& same = outcome_.same[encoded->list];
    same.insert(same.end(), encoded->same.begin(), encoded->same.end());
    for (PageRun& run : encoded->runs) {
      if (run.kind == RunKind::kData) {
        run.frame = frame_index;
        outcome_.counts.saved += run.pages;
      } else {
        (run.fill == 0 ? outcome_.counts.zero : outcome_.counts.fill) += run.pages;
      }
      outcome_.runs[encoded->list].push_back(run);
    }
  }
  while (writer_.settle_one()) {
  }
}

void CapturePipeline::join() {
  open_gate();
  filled_.close();
  for (std::thread& worker : workers_) worker.join();
  encoded_.close();
  writing_.join();
}

Result<CapturePipeline::Outcome> CapturePipeline::finish() {
  join();
  const std::lock_guard lock(error_mutex_);
  if (error_) return *error_;
  return std::move(outcome_);
}

}  // namespace vmsieve
