// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/memory_filler.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <thread>

#include "vmsieve/qemu/process_memory.h"
#include "vmsieve/restore/frame_feed.h"

namespace vmsieve {

namespace {

/// A thread waits for the disk before it writes; meanwhile others do.
constexpr unsigned kReadersEach = 4;

/// The work that is shared by some threads.
class Filler {
 public:
  Filler(const CheckpointReader& reader, const MemoryIndex& index, const FreshMemory& fresh, pid_t qemu)
      : reader_(reader), index_(index), fresh_(fresh), qemu_(qemu) {
    std::vector<bool> elsewhere = fresh.brought;
    elsewhere.flip();
    jobs_ = frame_jobs(index, elsewhere);
    for (const FrameJob& job : jobs_)
      for (const PagePlacement& placement : job.placements) total_pages_ += placement.pages;
  }

  /// Pages of one repeated byte that is not zero.
  Result<u64> fill() const {
    u64 pages = 0;
    std::vector<std::byte> bytes(kMaxFrameBytes);
    for (u32 block = 0; block < index_.blocks.size(); ++block) {
      if (!fresh_.brought[block]) continue;
      for (const PageRun& run : index_.blocks[block].runs) {
        if (run.kind == RunKind::kData || run.fill == 0) continue;
        std::ranges::fill(bytes, std::byte{run.fill});
        for (u64 done = 0; done < run.pages; done += kMaxFrameBytes / kPageSize) {
          const u64 count = std::min(kMaxFrameBytes / kPageSize, run.pages - done);
          VMSIEVE_TRY(write(block, run.first_page + done, std::span{bytes}.first(count * kPageSize)));
        }
        pages += run.pages;
      }
    }
    return pages;
  }

  /// Until there is no job left. `progress` may be empty.
  void work(const ProgressFunction& progress) {
    CheckpointReader::Scratch scratch;
    for (std::size_t i = next_job_++; i < jobs_.size(); i = next_job_++) {
      if (const auto done = do_job(jobs_[i], scratch); !done) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = done.error();
        next_job_ = jobs_.size();
      }
      if (progress) progress({"loading memory", done_pages_ * kPageSize, total_pages_ * kPageSize});
    }
  }

  /// When all threads have ended.
  Result<u64> done_pages() const {
    if (error_) return *error_;
    return done_pages_.load();
  }

 private:
  Result<void> write(u32 block, u64 first_page, std::span<const std::byte> bytes) const {
    const HostVirtual start = fresh_.layout.blocks[fresh_.block[block]].host;
    return write_process_memory(qemu_, HostVirtual{start.value + first_page * kPageSize}, bytes);
  }

  Result<void> do_job(const FrameJob& job, CheckpointReader::Scratch& scratch) {
    VMSIEVE_ASSIGN(const auto frame, reader_.read_frame(job.frame, scratch));
    for (const PagePlacement& placement : job.placements) {
      VMSIEVE_TRY(write(placement.block, placement.first_page,
                        frame.subspan(placement.page_in_frame * kPageSize, placement.pages * kPageSize)));
      done_pages_ += placement.pages;
    }
    return {};
  }

  const CheckpointReader& reader_;
  const MemoryIndex& index_;
  const FreshMemory& fresh_;
  const pid_t qemu_;
  std::vector<FrameJob> jobs_;
  u64 total_pages_ = 0;
  std::atomic<std::size_t> next_job_ = 0;
  std::atomic<u64> done_pages_ = 0;
  std::mutex mutex_;
  std::optional<Error> error_;  // by mutex_
};

}  // namespace

Result<SentPages> fill_memory(const CheckpointReader& reader, const MemoryIndex& index,
                              const FreshMemory& fresh, pid_t qemu, unsigned threads,
                              const ProgressFunction& progress) {
  VMSIEVE_CHECK(threads > 0 && fresh.brought.size() == index.blocks.size());
  reader.expect_one_pass();
  Filler filler(reader, index, fresh, qemu);
  SentPages sent;
  VMSIEVE_ASSIGN(sent.fill, filler.fill());
  std::vector<std::thread> helpers;
  for (unsigned i = 1; i < kReadersEach * threads; ++i) helpers.emplace_back([&filler] { filler.work({}); });
  filler.work(progress);
  for (std::thread& helper : helpers) helper.join();
  VMSIEVE_ASSIGN(sent.data, filler.done_pages());
  return sent;
}

}  // namespace vmsieve
