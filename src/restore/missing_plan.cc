// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/missing_plan.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "vmsieve/base/result.h"

namespace vmsieve {

namespace {

constexpr u64 kFillPages = kMaxFrameBytes / kPageSize;  // of a job

bool is_zero(const PageRun& run) { return run.kind != RunKind::kData && run.fill == 0; }

const RamBlock& block_of(const RamLayout& layout, const std::string& name) {
  const auto found = std::ranges::find(layout.blocks, name, &RamBlock::name);
  VMSIEVE_CHECK(found != layout.blocks.end());
  return *found;
}

/// `count` pages of a run, from page `first` of its block on, to be put at `address`.
MissingPiece piece_of(const PageRun& run, u64 first, u64 count, u64 address) {
  MissingPiece piece;
  piece.fill = run.fill;
  piece.address = address;
  piece.pages = count;
  if (run.kind == RunKind::kData) {
    piece.frame = run.frame;
    piece.page_in_frame = run.page_in_frame + (first - run.first_page);
  }
  return piece;
}

}  // namespace

void MissingPlan::add_huge_pages(const BlockIndex& from, Block& block) {
  const u64 pages_each = block.page_bytes / kPageSize;
  std::optional<u64> last;
  for (const PageRun& run : from.runs) {
    if (is_zero(run)) continue;
    for (u64 first = run.first_page; first < run.first_page + run.pages;) {
      const u64 huge_page = first / pages_each;
      const u64 end = std::min(run.first_page + run.pages, (huge_page + 1) * pages_each);
      if (last != huge_page) {
        const u64 address = block.host.start + huge_page * block.page_bytes;
        block.segments.push_back({address, pages_each, jobs_.size()});
        jobs_.push_back({{}, ByteRange{address, address + block.page_bytes}});
        last = huge_page;
      }
      jobs_.back().pieces.push_back(piece_of(run, first, end - first, block.host.start + first * kPageSize));
      pages_ += end - first;
      first = end;
    }
  }
}

MissingPlan::MissingPlan(const MemoryIndex& index, const std::vector<bool>& lazy, const RamLayout& layout) {
  VMSIEVE_CHECK(lazy.size() == index.blocks.size());
  constexpr std::size_t kUnused = ~std::size_t{0};
  std::vector<std::size_t> job_of_frame(index.frames.size(), kUnused);
  // Frames get their jobs first, in the order of their bytes.
  std::vector<u64> used;
  for (std::size_t i = 0; i < lazy.size(); ++i) {
    if (!lazy[i] || block_of(layout, index.blocks[i].name).host_page_bytes != kPageSize) continue;
    for (const PageRun& run : index.blocks[i].runs) {
      if (run.kind == RunKind::kData) used.push_back(run.frame);
    }
  }
  std::ranges::sort(used, {}, [&](u64 frame) {
    return std::tuple{index.frames[frame].object, index.frames[frame].offset, frame};
  });
  for (const u64 frame : used) {
    if (job_of_frame[frame] != kUnused) continue;
    job_of_frame[frame] = jobs_.size();
    jobs_.emplace_back();
  }

  for (std::size_t i = 0; i < lazy.size(); ++i) {
    if (!lazy[i]) continue;
    const RamBlock& at = block_of(layout, index.blocks[i].name);
    Block& block = blocks_.emplace_back();
    block.page_bytes = at.host_page_bytes;
    block.host = {at.host.value, at.host.value + round_up(at.used_bytes, at.host_page_bytes)};
    ranges_.push_back(block.host);
    if (block.page_bytes != kPageSize) {
      add_huge_pages(index.blocks[i], block);
      continue;
    }
    for (const PageRun& run : index.blocks[i].runs) {
      const u64 address = block.host.start + run.first_page * kPageSize;
      if (is_zero(run)) continue;
      pages_ += run.pages;
      if (run.kind == RunKind::kData) {
        const std::size_t job = job_of_frame[run.frame];
        jobs_[job].pieces.push_back(piece_of(run, run.first_page, run.pages, address));
        block.segments.push_back({address, run.pages, job});
        continue;
      }
      for (u64 done = 0; done < run.pages; done += kFillPages) {
        const u64 count = std::min(kFillPages, run.pages - done);
        block.segments.push_back({address + done * kPageSize, count, jobs_.size()});
        jobs_.push_back(
            {{piece_of(run, run.first_page + done, count, address + done * kPageSize)}, std::nullopt});
      }
    }
  }
  std::ranges::sort(blocks_, {}, [](const Block& block) { return block.host.start; });
}

std::optional<MissingPlan::Place> MissingPlan::find(u64 address) const {
  auto block = std::ranges::upper_bound(blocks_, address, {}, [](const Block& b) { return b.host.start; });
  if (block == blocks_.begin()) return std::nullopt;
  --block;
  if (address >= block->host.end) return std::nullopt;
  Place place{std::nullopt, block->host, block->page_bytes};
  const auto after =
      std::ranges::upper_bound(block->segments, address, {}, [](const Segment& s) { return s.address; });
  if (after != block->segments.end()) place.zeros.end = after->address;
  if (after == block->segments.begin()) return place;
  const Segment& segment = *std::prev(after);
  const u64 end = segment.address + segment.pages * kPageSize;
  if (address < end) {
    place.job = segment.job;
  } else {
    place.zeros.start = end;
  }
  return place;
}

std::vector<std::size_t> MissingPlan::jobs_of(std::span<const u64> frames) const {
  if (frames.empty()) return {};
  constexpr std::size_t kNowhere = ~std::size_t{0};
  std::vector<std::size_t> positions(*std::ranges::max_element(frames) + 1, kNowhere);  // by frame
  for (std::size_t i = 0; i < frames.size(); ++i)
    if (positions[frames[i]] == kNowhere) positions[frames[i]] = i;
  std::vector<std::pair<std::size_t, std::size_t>> found;  // position and job
  for (std::size_t job = 0; job < jobs_.size(); ++job) {
    std::size_t position = kNowhere;
    for (const MissingPiece& piece : jobs_[job].pieces)
      if (piece.frame && *piece.frame < positions.size())
        position = std::min(position, positions[*piece.frame]);
    if (position != kNowhere) found.emplace_back(position, job);
  }
  std::ranges::sort(found);
  std::vector<std::size_t> jobs;
  for (const auto& [position, job] : found) jobs.push_back(job);
  return jobs;
}

}  // namespace vmsieve
