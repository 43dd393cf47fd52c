// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/frame_feed.h"

#include <algorithm>
#include <tuple>

namespace vmsieve {

namespace {

constexpr std::size_t kFramesPerThread = 4;

}  // namespace

std::vector<FrameJob> frame_jobs(const MemoryIndex& index, const std::vector<bool>& elsewhere) {
  std::vector<FrameJob> jobs(index.frames.size());
  for (std::size_t i = 0; i < jobs.size(); ++i) jobs[i].frame = i;
  for (u32 block = 0; block < index.blocks.size(); ++block) {
    if (index.blocks[block].name.empty() || (!elsewhere.empty() && elsewhere[block])) continue;
    for (const PageRun& run : index.blocks[block].runs) {
      if (run.kind != RunKind::kData) continue;
      jobs[run.frame].placements.push_back({block, run.first_page, run.pages, run.page_in_frame});
    }
  }
  std::erase_if(jobs, [](const FrameJob& job) { return job.placements.empty(); });
  std::ranges::sort(jobs, {}, [&](const FrameJob& job) {
    return std::tuple{index.frames[job.frame].object, index.frames[job.frame].offset};
  });
  return jobs;
}

FrameFeed::FrameFeed(const CheckpointReader& reader, std::vector<FrameJob> jobs, unsigned threads)
    : reader_(reader),
      jobs_(std::move(jobs)),
      free_(threads * kFramesPerThread),
      decoded_(threads * kFramesPerThread) {
  VMSIEVE_CHECK(threads > 0);
  for (std::size_t i = 0; i < threads * kFramesPerThread; ++i) free_.push({});
  for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

FrameFeed::~FrameFeed() {
  free_.close();
  decoded_.close();
  // Nothing is in front of a worker but one frame: free_ may still hold some, so the work ends too.
  next_job_ = jobs_.size();
  for (std::thread& thread : threads_) thread.join();
}

void FrameFeed::work() {
  while (std::optional<Scratch> scratch = free_.pop()) {
    const std::size_t job = next_job_.fetch_add(1);
    if (job >= jobs_.size()) return;
    Item item{job, std::move(*scratch), std::nullopt};
    if (auto bytes = reader_.read_frame(jobs_[job].frame, item.scratch); !bytes) item.error = bytes.error();
    if (!decoded_.push(std::move(item))) return;
  }
}

Result<std::optional<FrameFeed::Decoded>> FrameFeed::next() {
  if (current_) {
    free_.push(std::move(current_->scratch));
    current_.reset();
  }
  if (taken_ == jobs_.size()) return std::optional<Decoded>{};
  current_ = decoded_.pop();
  if (!current_) return make_error(ErrorKind::kDamaged, "no more frames come after one that is damaged");
  if (current_->error) {
    const Error error = *current_->error;
    current_.reset();
    free_.close();
    decoded_.close();
    next_job_ = jobs_.size();
    return error;
  }
  ++taken_;
  return std::optional<Decoded>{Decoded{&jobs_[current_->job], current_->scratch.decoded}};
}

}  // namespace vmsieve
