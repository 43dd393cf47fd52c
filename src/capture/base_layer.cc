// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/base_layer.h"

#include <algorithm>
#include <cstring>

#include "vmsieve/image/frame_codec.h"

namespace vmsieve {

namespace {

/// Marks frame numbers of the base until they have numbers of their own.
constexpr u64 kOfBase = u64{1} << 63;

}  // namespace

std::vector<PageRun> BaseLayer::runs(u32 block, u64 pages) const {
  std::vector<PageRun> runs;
  if (base_ == nullptr) {
    if (pages > 0) runs.push_back({.first_page = 0, .pages = pages, .kind = RunKind::kFill});
    return runs;
  }
  runs = base_->index().blocks[block].runs;
  for (PageRun& run : runs)
    if (run.kind == RunKind::kData) run.frame |= kOfBase;
  return runs;
}

std::vector<PageRun> BaseLayer::runs(u32 block, std::span<const BlockPages> pages) const {
  std::vector<PageRun> found;
  if (base_ == nullptr) return found;
  const std::vector<PageRun>& runs = base_->index().blocks[block].runs;
  for (const BlockPages& wanted : pages) {
    const u64 end = wanted.first_page + wanted.pages;
    auto run = std::partition_point(runs.begin(), runs.end(), [&](const PageRun& r) {
      return r.first_page + r.pages <= wanted.first_page;
    });
    for (; run != runs.end() && run->first_page < end; ++run) {
      const u64 first = std::max(run->first_page, wanted.first_page);
      PageRun part = *run;
      part.first_page = first;
      part.pages = std::min(end, run->first_page + run->pages) - first;
      if (part.kind == RunKind::kData) {
        part.page_in_frame += first - run->first_page;
        part.frame |= kOfBase;
      }
      found.push_back(part);
    }
  }
  return found;
}

Result<void> BaseLayer::adopt(std::vector<PageRun>& runs, MemoryObjectWriter& writer) {
  for (PageRun& run : runs) {
    if (run.kind != RunKind::kData || (run.frame & kOfBase) == 0) continue;
    const u64 old = run.frame & ~kOfBase;
    auto number = numbers_.find(old);
    if (number == numbers_.end()) {
      const MemoryIndex& index = base_->index();
      const Frame& frame = index.frames[old];
      const std::string& owner = frame.object == 0 ? base_->manifest().id : index.ancestors[frame.object - 1];
      VMSIEVE_ASSIGN(const u64 added, writer.add_ancestor_frame(owner, frame));
      number = numbers_.emplace(old, added).first;
    }
    run.frame = number->second;
  }
  return {};
}

void count_pages(const std::vector<PageRun>& runs, PageCounts& counts) {
  for (const PageRun& run : runs) {
    switch (run.kind) {
      case RunKind::kFree: counts.free += run.pages; break;
      case RunKind::kFill: (run.fill == 0 ? counts.zero : counts.fill) += run.pages; break;
      case RunKind::kData: counts.saved += run.pages; break;
    }
  }
}

bool BaseContent::same(u32 block, u64 page, std::span<const std::byte> bytes) {
  const std::vector<PageRun>& runs = base_.index().blocks[block].runs;
  const auto run = std::partition_point(runs.begin(), runs.end(),
                                        [&](const PageRun& r) { return r.first_page + r.pages <= page; });
  if (run == runs.end() || run->first_page > page || run->kind == RunKind::kFree) return false;
  if (run->kind == RunKind::kFill) return uniform_byte(bytes) == run->fill;
  if (run->frame != frame_) {
    frame_ = ~u64{0};
    const auto decoded = base_.read_frame(run->frame, scratch_);
    if (!decoded) return false;
    decoded_ = *decoded;
    frame_ = run->frame;
  }
  const u64 offset = (run->page_in_frame + (page - run->first_page)) * kPageSize;
  return std::memcmp(&decoded_[offset], bytes.data(), kPageSize) == 0;
}

}  // namespace vmsieve
