// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "vmsieve/capture/page_plan.h"
#include "vmsieve/image/manifest.h"
#include "vmsieve/image/memory_index.h"
#include "vmsieve/store/checkpoint_reader.h"
#include "vmsieve/store/memory_writer.h"

namespace vmsieve {

/// What an incremental checkpoint builds on: the index of an earlier one, or, for a full checkpoint, zeros.
class BaseLayer {
 public:
  /// `base` must outlive this; nullptr: zeros.
  explicit BaseLayer(const CheckpointReader* base) : base_(base) {}

  /// The runs of a block of so many pages. Their frame numbers mean nothing before adopt().
  std::vector<PageRun> runs(u32 block, u64 pages) const;
  /// What the base says of these pages of a block.
  std::vector<PageRun> runs(u32 block, std::span<const BlockPages> pages) const;
  /// Gives frames of the base that `runs` still name their numbers in the new index.
  Result<void> adopt(std::vector<PageRun>& runs, MemoryObjectWriter& writer);

 private:
  const CheckpointReader* base_;
  std::unordered_map<u64, u64> numbers_;
};

/// Adds the pages of `runs` to what they count as.
void count_pages(const std::vector<PageRun>& runs, PageCounts& counts);

/// Tells whether a page's bytes are those that a checkpoint has of it. One for each thread.
class BaseContent {
 public:
  explicit BaseContent(const CheckpointReader& base) : base_(base) {}
  /// False also when the base calls the page free, or cannot be read.
  bool same(u32 block, u64 page, std::span<const std::byte> bytes);

 private:
  const CheckpointReader& base_;
  CheckpointReader::Scratch scratch_;
  u64 frame_ = ~u64{0};  ///< whose pages `decoded_` has
  std::span<const std::byte> decoded_;
};

}  // namespace vmsieve
