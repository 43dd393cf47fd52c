// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "vmsieve/base/anonymous_memory.h"
#include "vmsieve/base/queue.h"
#include "vmsieve/base/result.h"
#include "vmsieve/capture/page_plan.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/manifest.h"
#include "vmsieve/store/checkpoint_reader.h"
#include "vmsieve/store/memory_writer.h"

namespace vmsieve {

/// A bounded number of equal buffers. The guest's pause ends as soon as its pages are in here, so
/// the pool's size is what bounds this program's memory.
class BufferPool {
 public:
  /// `count` buffers of `bytes` each; address space only, until it is used or prefault() is called.
  static Result<std::unique_ptr<BufferPool>> make(u64 count, u64 bytes);
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  /// Makes the first `bytes` of the pool resident, by `threads` threads, so that the pause does not pay for
  /// page faults.
  void prefault(u64 bytes, unsigned threads);
  /// A buffer, or nullptr when none is free now.
  std::byte* try_acquire();
  /// Waits until more than `reserve` are free and takes one; nullptr after close().
  std::byte* acquire(u64 reserve = 0);
  /// Waits for one until `deadline`; nullptr when none came, and after close().
  std::byte* acquire_until(std::chrono::steady_clock::time_point deadline);
  void release(std::byte* buffer);
  void close();
  u64 count() const { return count_; }
  u64 buffer_bytes() const { return bytes_; }

 private:
  BufferPool(AnonymousMemory memory, u64 count, u64 bytes);
  std::byte* take();  // with mutex_ held; nullptr when none is free

  const AnonymousMemory memory_;
  const u64 count_;
  const u64 bytes_;
  std::mutex mutex_;
  std::condition_variable released_;
  std::vector<std::byte*> free_;
  bool closed_ = false;
};

/// Pages that are sorted already: sort_pages() was applied to them.
struct SortedPages {
  std::size_t list = 0;       ///< as Chunk::list
  u64 pages = 0;              ///< of all runs
  std::vector<PageRun> runs;  ///< of the data pages page_in_frame is set, frame not yet
  u64 data_pages = 0;         ///< in the buffer, one behind the other
};

class BaseContent;

/// Pages on their way from the guest to the store: chunks are submitted by the readers, looked at
/// and encoded by `threads` workers, and written by one more thread.
///
/// The workers wait at a gate until the pool runs dry or the readers are done: while the guest is
/// stopped all cores read. Where far more is to be read than the pool holds, that would only leave the disk
/// without work: expect() then opens the gate.
class CapturePipeline {
 public:
  struct Options {
    Compression compression;
    unsigned threads = 1;
    u64 buffer_bytes = 256 * kMiB;
    u64 chunk_pages = 64;
    /// Pages that hold what this checkpoint has of them are not stored again.
    /// Must outlive the pipeline. Only of blocks whose number is in `compared_blocks`.
    const CheckpointReader* base = nullptr;
    std::vector<bool> compared_blocks = {};
    int nice = 0;  ///< of its threads: lower_priority()
  };

  /// What became of the pages that were submitted.
  struct Outcome {
    std::vector<std::vector<PageRun>> runs;     ///< by Chunk::list: kFill and kData, in no order
    PageCounts counts;                          ///< zero, fill and saved only
    std::vector<std::vector<BlockPages>> same;  ///< by Chunk::list: pages as in Options::base, in no order
  };

  /// `writer` must outlive the pipeline and is used by its writing thread alone until finish().
  static Result<std::unique_ptr<CapturePipeline>> make(MemoryObjectWriter& writer, std::size_t lists,
                                                       const Options& options);
  ~CapturePipeline();

  /// About so many bytes will be read while the guest stands still. What they need is made ready.
  void expect(u64 bytes);
  /// What is expected is more than the buffers hold, but for pages that need not be kept it might not be: who
  /// reads had better submit_sorted(). Not where pages are compared with a base.
  bool is_tight() const { return is_tight_; }
  u64 chunk_pages() const { return options_.chunk_pages; }
  u64 pool_bytes() const { return pool_bytes_; }
  u64 pool_buffers() const { return pool_->count(); }

  /// Waits for a buffer of chunk_pages() pages; nullptr when the pipeline has failed.
  std::byte* acquire();
  /// The same without waiting: nullptr also when none is free now.
  std::byte* try_acquire() { return failed() ? nullptr : pool_->try_acquire(); }
  /// As acquire(), but leaves some buffers to those who are in a hurry.
  std::byte* acquire_in_background();
  /// For who is in a hurry: nullptr also when `deadline` has passed.
  std::byte* acquire_until(std::chrono::steady_clock::time_point deadline);
  /// Hands over a chunk with its pages' bytes, one behind the other, in a buffer from acquire().
  void submit(Chunk chunk, std::byte* buffer);
  /// Hands over data pages in a buffer from acquire(). Not where pages are compared with a base.
  void submit_sorted(SortedPages pages, std::byte* buffer);
  /// Gives back a buffer that was not submitted.
  void cancel(std::byte* buffer) { pool_->release(buffer); }
  /// Lets the workers begin.
  void open_gate();
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  /// Pages that were encoded so far.
  u64 done_pages() const { return done_pages_.load(std::memory_order_relaxed); }

  /// Waits until all that was submitted is with the writer; the first error, if there was one.
  /// Nothing may be submitted afterwards.
  Result<Outcome> finish();

 private:
  struct Filled {
    Chunk chunk;  ///< of what is not sorted yet
    std::byte* buffer = nullptr;
    std::optional<SortedPages> sorted;
  };
  struct Encoded {
    std::size_t list = 0;
    std::vector<PageRun> runs;  ///< kData runs with page_in_frame set, frame not yet
    Frame frame;
    std::vector<std::byte> bytes;  ///< what is to be stored when it was compressed
    std::byte* buffer = nullptr;   ///< of the pool, with what is to be stored as it is
    std::vector<BlockPages> same;
  };

  CapturePipeline(MemoryObjectWriter& writer, std::size_t lists, const Options& options,
                  std::unique_ptr<BufferPool> pool, u64 pool_buffers);
  void work();
  SortedPages sort(Filled& filled, BaseContent* base, std::vector<BlockPages>& same);
  void write();
  Result<u64> add_frame(Encoded& encoded);
  std::optional<Encoded> next_encoded();
  void fail(const Error& error);
  void join();

  MemoryObjectWriter& writer_;
  const Options options_;
  std::unique_ptr<BufferPool> pool_;
  const u64 pool_bytes_;
  bool is_tight_ = false;
  BoundedQueue<Filled> filled_;
  BoundedQueue<Encoded> encoded_;

  std::mutex gate_mutex_;
  std::condition_variable gate_opened_;
  bool gate_open_ = false;  // under gate_mutex_

  std::mutex error_mutex_;
  std::optional<Error> error_;  // under error_mutex_
  std::atomic<bool> failed_ = false;
  std::atomic<u64> done_pages_ = 0;

  Outcome outcome_;  // the writing thread's until join()
  std::vector<std::thread> workers_;
  std::thread writing_;
};

/// Drops pages of `chunk` (bytes in `buffer`) that `keep` says no to, and returns them; the others move to
/// the front.
std::vector<BlockPages> keep_pages(Chunk& chunk, std::byte* buffer,
                                   const std::function<bool(u64 page, const std::byte* bytes)>& keep);

/// Sorts the pages of `chunk` (bytes in `buffer`) into fills and data: returns the runs, moves the
/// data pages to the front of the buffer and sets `data_pages`.
std::vector<PageRun> sort_pages(const Chunk& chunk, std::byte* buffer, u64& data_pages);

}  // namespace vmsieve
