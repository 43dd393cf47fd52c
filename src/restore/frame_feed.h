// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <optional>
#include <span>
#include <thread>
#include <variant>
#include <vector>

#include "vmsieve/base/queue.h"
#include "vmsieve/base/result.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve {

/// Where pages of a frame belong: [first_page, first_page + pages) of a block.
struct PagePlacement {
  u32 block = 0;  ///< index into MemoryIndex::blocks
  u64 first_page = 0;
  u64 pages = 0;
  u64 page_in_frame = 0;
};

/// A frame and all the pages that the index takes from it.
struct FrameJob {
  u64 frame = 0;
  std::vector<PagePlacement> placements;
};

/// The frames that an index uses, each once, in the order in which they lie in the objects. Left out are
/// blocks without a name, which QEMU does not migrate, and those that are brought in otherwise:
/// `elsewhere[i]` says whether block i is (empty: none).
std::vector<FrameJob> frame_jobs(const MemoryIndex& index, const std::vector<bool>& elsewhere = {});

/// Reads and decodes frames ahead of one consumer, by some threads, in bounded memory: four frames of at most
/// kMaxFrameBytes (and as many stored bytes) a thread. The order of what comes out is not defined.
class FrameFeed {
 public:
  struct Decoded {
    const FrameJob* job = nullptr;
    std::span<const std::byte> bytes;
  };

  /// Starts at once. `reader` must outlive the feed.
  FrameFeed(const CheckpointReader& reader, std::vector<FrameJob> jobs, unsigned threads);
  /// Lets go of what was not taken.
  ~FrameFeed();
  FrameFeed(const FrameFeed&) = delete;
  FrameFeed& operator=(const FrameFeed&) = delete;

  /// The next decoded frame, its checksum checked; nothing when all were taken. The bytes stay valid until
  /// the next call. After an error the feed is of no more use.
  Result<std::optional<Decoded>> next();

 private:
  using Scratch = CheckpointReader::Scratch;
  struct Item {
    std::size_t job = 0;
    Scratch scratch;
    std::optional<Error> error;
  };

  void work();

  const CheckpointReader& reader_;
  const std::vector<FrameJob> jobs_;
  std::atomic<std::size_t> next_job_ = 0;
  BoundedQueue<Scratch> free_;
  BoundedQueue<Item> decoded_;
  std::size_t taken_ = 0;        // the consumer's
  std::optional<Item> current_;  // the consumer's
  std::vector<std::thread> threads_;
};

}  // namespace vmsieve
