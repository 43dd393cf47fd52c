// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/tracked_capture.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <thread>

#include "vmsieve/base/clock.h"
#include "vmsieve/base/thread_priority.h"
#include "vmsieve/capture/base_layer.h"
#include "vmsieve/capture/run_layers.h"

namespace vmsieve {

namespace {

/// Rounds of copying before the pause, at most.
constexpr std::size_t kMostRounds = 6;
/// Where the guest has to stand still for each, one will do.
constexpr std::size_t kMostStandstills = 1;
/// So little is left to the pause: 2 MiB take about a millisecond to copy.
constexpr u64 kFewPages = 512;
/// A round that leaves more than this part of the one before is the last: the guest writes too fast.
constexpr u64 kProgressNumerator = 3;
constexpr u64 kProgressDenominator = 4;
/// Memory is asked about in pieces of this size, on all threads.
constexpr u64 kScanBytes = 512 * kMiB;
/// What is free is not asked about, in stretches of this size and more: shorter ones are not worth a piece
/// of their own, which costs system calls.
constexpr u64 kLeastSkippedBytes = 4 * kMiB;

/// Layers of Outcome::runs, one list a block each; a later layer is right where two have the same page.
constexpr std::size_t kPauseLayer = kMostRounds;
constexpr std::size_t kKeptLayer = kMostRounds + 1;
constexpr std::size_t kLayers = kMostRounds + 2;

u64 pages_of(const LiveMemory& memory, u32 block) {
  return round_up(memory.layout().blocks[block].used_bytes, kPageSize) >> kPageShift;
}

u64 count_all(const std::vector<PageSet>& sets) {
  u64 count = 0;
  for (const PageSet& set : sets) count += set.count();
  return count;
}

/// Calls `work` with 0 to count - 1 on `threads` threads; the first error. `nice`: theirs; the caller's own
/// thread, which would stay like that, then only waits.
Result<void> for_all(std::size_t count, unsigned threads, int nice,
                     const std::function<Result<void>(std::size_t)>& work) {
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::optional<Error> error;
  const auto run = [&] {
    for (std::size_t i = next++; i < count; i = next++) {
      auto done = work(i);
      if (done.ok()) continue;
      const std::lock_guard lock(mutex);
      if (!error) error = done.error();
      next = count;
    }
  };
  std::vector<std::thread> helpers;
  const auto help = [&] {
    lower_priority(nice);
    run();
  };
  for (unsigned i = nice > 0 ? 0 : 1; i < threads && i < count; ++i) helpers.emplace_back(help);
  if (nice == 0) run();
  for (std::thread& helper : helpers) helper.join();
  if (error) return *error;
  return {};
}

}  // namespace

TrackedCapture::TrackedCapture(const LiveMemory& memory, Pagemap pagemap, const CheckpointReader* base)
    : memory_(memory),
      pagemap_(std::move(pagemap)),
      units_(memory.layout()),
      base_(base),
      places_(memory.layout().blocks.size()) {
  for (u32 block = 0; block < memory.layout().blocks.size(); ++block) {
    const u64 pages = pages_of(memory, block);
    stale_.emplace_back(pages);
    held_.emplace_back(pages);
    free_.emplace_back(pages);
  }
}

std::size_t TrackedCapture::lists() const { return kLayers * stale_.size(); }

Result<std::unique_ptr<TrackedCapture>> TrackedCapture::make(const LiveMemory& memory, pid_t pid,
                                                             const CheckpointReader* base) {
  VMSIEVE_ASSIGN(Pagemap pagemap, Pagemap::open(pid));
  std::unique_ptr<TrackedCapture> capture(new TrackedCapture(memory, std::move(pagemap), base));
  for (u32 block = 0; block < capture->stale_.size(); ++block) {
    PageSet& stale = capture->stale_[block];
    if (base == nullptr) {
      stale.add({0, stale.size()});
      continue;
    }
    // What was free holds something all the same, and may be in use now without having been written.
    for (const PageRun& run : base->index().blocks[block].runs)
      if (run.kind == RunKind::kFree) stale.add({run.first_page, run.pages});
  }
  return capture;
}

// What may hold something is what did before the writes were noted, and what became present before all were.
Result<std::unique_ptr<TrackedCapture>> TrackedCapture::begin(const LiveMemory& memory, pid_t pid,
                                                              const WriteProtection& protection) {
  VMSIEVE_ASSIGN(Pagemap pagemap, Pagemap::open(pid));
  std::unique_ptr<TrackedCapture> capture(new TrackedCapture(memory, std::move(pagemap), nullptr));
  const auto add = [&](u32 block, const std::vector<LiveMemory::PageRun>& runs) {
    for (const LiveMemory::PageRun& run : runs) capture->stale_[block].add({run.first, run.count});
  };
  for (u32 block = 0; block < capture->stale_.size(); ++block)
    add(block, memory.resident_block(block, 0, pages_of(memory, block)));
  for (u32 block = 0; block < capture->stale_.size(); ++block) {
    const ByteRange range = capture->units_.block(block);
    if (range.start < range.end) VMSIEVE_TRY(protection.protect(range));
  }
  for (u32 block = 0; block < capture->stale_.size(); ++block)
    add(block, memory.present_block(block, 0, pages_of(memory, block)));
  return capture;
}

std::vector<ByteRange> TrackedCapture::not_free(u32 block) const {
  const ByteRange all = units_.block(block);
  const u64 unit = units_.unit_bytes(block);  // huge pages are not cut
  std::vector<ByteRange> ranges;
  u64 at = all.start;
  for (const BlockPages& run : free_[block].runs()) {
    const u64 start = round_up(all.start + run.first_page * kPageSize, unit);
    const u64 end = round_down(all.start + (run.first_page + run.pages) * kPageSize, unit);
    if (end < start + kLeastSkippedBytes) continue;
    append_range(ranges, {at, start});
    at = end;
  }
  append_range(ranges, {at, all.end});
  return ranges;
}

// What is free now is not asked about, and stays unprotected where it is: this capture leaves it out or, when
// it is in use by the instant, asks about it then; the next one finds it stale (make()).
Result<void> TrackedCapture::take_written(unsigned threads, int nice) {
  struct Piece {
    u32 block = 0;
    ByteRange range;
    std::vector<ByteRange> written;
  };
  std::vector<Piece> pieces;
  for (u32 block = 0; block < stale_.size(); ++block) {
    const u64 bytes = std::max(kScanBytes, units_.unit_bytes(block));
    for (const ByteRange& range : not_free(block))
      for (u64 start = range.start; start < range.end; start += bytes)
        pieces.push_back({block, {start, std::min(range.end, start + bytes)}, {}});
  }
  const auto ask = [&](std::size_t i) -> Result<void> {
    Piece& piece = pieces[i];
    VMSIEVE_ASSIGN(piece.written, pagemap_.written(piece.range.start, piece.range.end, Pagemap::Take::kYes));
    return {};
  };
  VMSIEVE_TRY(for_all(pieces.size(), threads, nice, ask));
  for (const Piece& piece : pieces) {
    const u64 start = units_.block(piece.block).start;
    for (const ByteRange& range : piece.written) {
      const BlockPages run{(range.start - start) >> kPageShift, (range.end - range.start) >> kPageShift};
      stale_[piece.block].add(run);
      held_[piece.block].remove(run);
    }
  }
  return {};
}

std::vector<PageSet> TrackedCapture::wanted() const {
  std::vector<PageSet> wanted = stale_;
  for (std::size_t block = 0; block < wanted.size(); ++block) {
    wanted[block].remove(held_[block]);
    wanted[block].remove(free_[block]);
  }
  return wanted;
}

void TrackedCapture::set_free(std::span<const PfnRange> free) {
  const auto runs = free_pages_of_blocks(memory_.layout(), free);
  for (std::size_t block = 0; block < free_.size(); ++block) {
    free_[block] = PageSet(free_[block].size());
    for (const BlockPages& run : runs[block]) free_[block].add(run);
  }
}

// ---- copying ----

/// Pages that are kept are replaced where they are; the others are left in `rest`.
void TrackedCapture::replace(u32 block, BlockPages run, std::vector<Copy>& copies,
                             std::vector<BlockPages>& rest) const {
  const std::map<u64, Place>& places = places_[block];
  const u64 end = run.first_page + run.pages;
  auto place = places.upper_bound(run.first_page);
  if (place != places.begin()) --place;
  u64 at = run.first_page;
  for (; place != places.end() && place->first < end; ++place) {
    const u64 place_end = place->first + place->second.pages;
    if (place_end <= at) continue;
    const u64 first = std::max(at, place->first);
    if (first > at) rest.push_back({at, first - at});
    const u64 stop = std::min(end, place_end);
    copies.push_back(
        {block, {first, stop - first}, place->second.bytes + (first - place->first) * kPageSize});
    at = stop;
  }
  if (at < end) rest.push_back({at, end - at});
}

Result<void> TrackedCapture::read(const Copy& copy) const {
  return memory_.read_block(copy.block, copy.pages.first_page * kPageSize,
                            {copy.to, copy.pages.pages * kPageSize});
}

Result<void> TrackedCapture::copy(const std::vector<PageSet>& wanted, CapturePipeline& pipeline,
                                  unsigned threads, std::size_t layer, u64 most_kept,
                                  std::optional<TimePoint> deadline, const ProgressFunction* progress) {
  const int nice = deadline ? 0 : kBackgroundNice;  // in the pause the guest waits
  std::vector<Copy> copies;
  PagePlan plan;
  plan.blocks.resize(wanted.size());
  for (u32 block = 0; block < wanted.size(); ++block) {
    for (const BlockPages& run : wanted[block].runs()) replace(block, run, copies, plan.blocks[block].read);
    held_[block].add(wanted[block]);
  }
  std::vector<Chunk> chunks = cut_chunks(plan, pipeline.chunk_pages());
  // The last chunks are those that are not kept: they go through the pipeline at once.
  std::size_t kept = 0;
  for (; kept < chunks.size() && kept_.size() < most_kept; ++kept) {
    std::byte* const buffer = pipeline.try_acquire();
    if (buffer == nullptr) break;
    Chunk& chunk = chunks[kept];
    chunk.list = kKeptLayer * wanted.size() + chunk.block;
    std::byte* to = buffer;
    for (const BlockPages& run : chunk.runs) {
      copies.push_back({chunk.block, run, to});
      places_[chunk.block][run.first_page] = {run.pages, to};
      to += run.pages * kPageSize;
    }
    kept_.push_back({chunk, buffer});
  }

  u64 total = 0;
  for (const PageSet& set : wanted) total += set.count() * kPageSize;
  std::mutex telling;  // never from two threads at once (ProgressFunction)
  u64 done = 0;
  const auto tell = [&](u64 bytes) {
    if (progress == nullptr) return;
    const std::lock_guard lock(telling);
    done += bytes;
    (*progress)({"copying ahead", done, total});
  };
  // Some at a time, so that the threads do not meet at each page.
  constexpr std::size_t kCopiesAtOnce = 64;
  const auto read_some = [&](std::size_t i) -> Result<void> {
    const std::size_t end = std::min(copies.size(), (i + 1) * kCopiesAtOnce);
    for (std::size_t j = i * kCopiesAtOnce; j < end; ++j) {
      VMSIEVE_TRY(read(copies[j]));
      tell(copies[j].pages.pages * kPageSize);
    }
    return {};
  };
  VMSIEVE_TRY(for_all((copies.size() + kCopiesAtOnce - 1) / kCopiesAtOnce, threads, nice, read_some));
  if (kept < chunks.size()) pipeline.open_gate();
  const auto pass_on = [&](std::size_t i) -> Result<void> {
    Chunk& chunk = chunks[kept + i];
    chunk.list = layer * wanted.size() + chunk.block;
    std::byte* const buffer = deadline ? pipeline.acquire_until(*deadline) : pipeline.acquire();
    if (buffer == nullptr && !pipeline.failed())
      return Error(ErrorKind::kTimeout, "the guest stood still too long: the store is too slow");
    if (buffer == nullptr) return Error(ErrorKind::kIo, "the store cannot be written");
    std::byte* to = buffer;
    for (const BlockPages& run : chunk.runs) {
      if (auto got = read({chunk.block, run, to}); !got.ok()) {
        pipeline.cancel(buffer);
        return got;
      }
      to += run.pages * kPageSize;
    }
    tell(chunk.pages * kPageSize);
    pipeline.submit(std::move(chunk), buffer);
    return {};
  };
  VMSIEVE_TRY(for_all(chunks.size() - kept, threads, nice, pass_on));
  figures_.copied_pages += total / kPageSize;
  return {};
}

Result<void> TrackedCapture::copy_ahead(std::span<const PfnRange> free, CapturePipeline& pipeline,
                                        unsigned threads, const ProgressFunction& progress,
                                        const StandingStill& standing_still) {
  const Stopwatch watch;
  set_free(free);
  // Half of the buffers stay free for what the pipeline is busy with, and for the pause.
  const u64 most_kept = pipeline.pool_buffers() / 2;
  u64 before = std::numeric_limits<u64>::max();
  const auto take = [&] { return take_written(threads, standing_still ? 0 : kBackgroundNice); };
  const std::size_t most_rounds = standing_still ? kMostStandstills : kMostRounds;
  for (std::size_t round = 0; round < most_rounds; ++round) {
    VMSIEVE_TRY(standing_still ? standing_still(take) : take());
    const std::vector<PageSet> pages = wanted();
    const u64 count = count_all(pages);
    if (count <= kFewPages || count > before / kProgressDenominator * kProgressNumerator) break;
    VMSIEVE_TRY(copy(pages, pipeline, threads, round, most_kept, std::nullopt, &progress));
    before = count;
    ++figures_.rounds;
  }
  figures_.before_ms = watch.ms();
  return {};
}

bool TrackedCapture::is_unwritten(GuestPhysical address, u64 bytes) const {
  // What is in more than one mapping is not worth the trouble.
  const auto host = units_.host(memory_.layout(), address, bytes);
  if (!host) return false;
  const auto written = pagemap_.written(round_down(host->start, kPageSize), round_up(host->end, kPageSize),
                                        Pagemap::Take::kNo);
  return written.ok() && written->empty();
}

// ---- the instant ----

Result<void> TrackedCapture::freeze(std::span<const PfnRange> free, CapturePipeline& pipeline,
                                    unsigned threads, std::chrono::milliseconds longest_pause) {
  const Stopwatch scanning;
  set_free(free);
  VMSIEVE_TRY(take_written(threads, 0));
  figures_.scan_ms = scanning.ms();
  const std::vector<PageSet> pages = wanted();
  figures_.frozen_pages = count_all(pages);
  // Some buffers are left for what has to go through the pipeline, should it be more than all.
  const u64 buffers = pipeline.pool_buffers();
  const u64 most_kept = buffers - std::min(buffers / 2, u64{2} * threads);
  VMSIEVE_TRY(copy(pages, pipeline, threads, kPauseLayer, most_kept,
                   std::chrono::steady_clock::now() + longest_pause, nullptr));
  return {};
}

Result<void> TrackedCapture::submit(CapturePipeline& pipeline) {
  for (Kept& kept : kept_) {
    const PageSet& free = free_[kept.chunk.block];
    keep_pages(kept.chunk, kept.buffer, [&](u64 page, const std::byte*) { return !free.has(page); });
    if (kept.chunk.pages == 0) {
      pipeline.cancel(kept.buffer);
    } else {
      pipeline.submit(std::move(kept.chunk), kept.buffer);
    }
  }
  kept_.clear();
  if (pipeline.failed()) return Error(ErrorKind::kIo, "the store cannot be written");
  return {};
}

Result<std::vector<BlockIndex>> TrackedCapture::index(CapturePipeline::Outcome& outcome,
                                                      MemoryObjectWriter& writer, u8 free_fill,
                                                      PageCounts& counts) const {
  BaseLayer base(base_);
  std::vector<BlockIndex> blocks;
  for (u32 block = 0; block < stale_.size(); ++block) {
    std::vector<PageRun> runs = base.runs(block, stale_[block].size());
    for (std::size_t layer = 0; layer < kLayers; ++layer) {
      std::vector<PageRun>& copied = outcome.runs[layer * stale_.size() + block];
      // Also over what an earlier round had of them.
      const auto same = base.runs(block, outcome.same[layer * stale_.size() + block]);
      copied.insert(copied.end(), same.begin(), same.end());
      sort_runs(copied);
      runs = lay_over(runs, copied);
    }
    std::vector<PageRun> free;
    for (const BlockPages& run : free_[block].runs())
      free.push_back(
          {.first_page = run.first_page, .pages = run.pages, .kind = RunKind::kFree, .fill = free_fill});
    runs = joined(lay_over(runs, free));
    VMSIEVE_TRY(base.adopt(runs, writer));
    count_pages(runs, counts);
    const RamBlock& described = memory_.layout().blocks[block];
    blocks.push_back({described.name, described.used_bytes, std::move(runs)});
  }
  return blocks;
}

}  // namespace vmsieve
