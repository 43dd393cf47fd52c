// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/live_capture.h"

#include <sys/resource.h>
#include <unistd.h>
#include <algorithm>
#include <cstring>
#include <numeric>

namespace vmsieve {

namespace {

using Clock = std::chrono::steady_clock;

/// How long the answering thread sleeps at most: the end of a capture waits for it.
constexpr int kPollMilliseconds = 20;
constexpr int kAnsweringPriority = -10;
constexpr std::size_t kReleasedAtOnce = 32;
/// So many buffers that some may be left unused for a while without anybody waiting for them for ever.
constexpr u64 kSparingBuffers = 16;
constexpr std::chrono::milliseconds kBeatPeriod{100};

double ms_since(Clock::time_point since) {
  return std::chrono::duration<double, std::milli>(Clock::now() - since).count();
}

/// Ranges of neighbouring units as one. Blocks need not lie in the order of their addresses.
std::vector<ByteRange> host_ranges(const MemoryUnits& units, const std::vector<std::size_t>& numbers) {
  std::vector<ByteRange> sorted;
  sorted.reserve(numbers.size());
  for (const std::size_t unit : numbers) sorted.push_back(units.host(unit));
  std::sort(sorted.begin(), sorted.end(),
            [](const ByteRange& a, const ByteRange& b) { return a.start < b.start; });
  std::vector<ByteRange> ranges;
  for (const ByteRange& range : sorted) append_range(ranges, range);
  return ranges;
}

/// Sorts and merges.
void normalise(std::vector<LiveMemory::PageRun>& runs) {
  std::sort(runs.begin(), runs.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<LiveMemory::PageRun> merged;
  for (const LiveMemory::PageRun& run : runs) {
    if (!merged.empty() && run.first <= merged.back().first + merged.back().count) {
      merged.back().count = std::max(merged.back().count, run.first + run.count - merged.back().first);
    } else {
      merged.push_back(run);
    }
  }
  runs = std::move(merged);
}

}  // namespace

Result<std::unique_ptr<LiveCapture>> LiveCapture::start(const LiveMemory& memory, pid_t pid,
                                                        WriteProtection protection, const Options& options) {
  VMSIEVE_ASSIGN(Pagemap pagemap, Pagemap::open(pid));
  MemoryUnits units(memory.layout());
  // The watch begins before anything can wait for us, not with the answering thread.
  if (options.beat) options.beat();
  for (u32 block = 0; block < units.blocks(); ++block) {
    const ByteRange range = units.block(block);
    if (range.start >= range.end) continue;
    auto added = protection.add(range);
    if (!added.ok())
      return added.error().with_context(fmt::format("RAM block '{}'", memory.layout().blocks[block].name));
  }
  std::unique_ptr<LiveCapture> capture(
      new LiveCapture(memory, std::move(pagemap), std::move(units), std::move(protection), options));
  VMSIEVE_TRY(capture->protect_all());
  return capture;
}

LiveCapture::LiveCapture(const LiveMemory& memory, Pagemap pagemap, MemoryUnits units,
                         WriteProtection protection, const Options& options)
    : memory_(memory),
      pagemap_(std::move(pagemap)),
      units_(std::move(units)),
      protection_(std::move(protection)),
      options_(options),
      resident_(units_.blocks()),
      states_(std::make_unique<std::atomic<State>[]>(units_.count())),
      rewritten_(units_.count()),
      was_written_(units_.count()) {
  answering_ = std::thread([this] { answer(); });
}

LiveCapture::~LiveCapture() {
  ended_ = true;
  answering_.join();
  protection_.end();
}

// What may hold something is what did before the protection, and what became present before it was complete.
// What is written after that, the answering thread is told of.
Result<void> LiveCapture::protect_all() {
  const auto pages_of = [&](u32 block) {
    return round_up(memory_.layout().blocks[block].used_bytes, kPageSize) >> kPageShift;
  };
  for (u32 block = 0; block < units_.blocks(); ++block)
    resident_[block] = memory_.resident_block(block, 0, pages_of(block));
  for (u32 block = 0; block < units_.blocks(); ++block) {
    const ByteRange range = units_.block(block);
    if (range.start < range.end) VMSIEVE_TRY(protection_.protect(range));
  }
  for (u32 block = 0; block < units_.blocks(); ++block) {
    const auto present = memory_.present_block(block, 0, pages_of(block));
    resident_[block].insert(resident_[block].end(), present.begin(), present.end());
  }
  return {};
}

// ---- the answering thread ----

void LiveCapture::answer() {
  // The guest waits for this thread. Without the right to it, it is one of many.
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kAnsweringPriority);
  TimePoint next_beat{};
  while (!ended_) {
    if (options_.beat && Clock::now() >= next_beat) {
      options_.beat();
      next_beat = Clock::now() + kBeatPeriod;
    }
    auto answered = answer_writes();
    if (answered.ok()) answered = check_awaited();
    if (answered.ok()) continue;
    fail(answered.error());
    return;
  }
}

Result<void> LiveCapture::answer_writes() {
  VMSIEVE_ASSIGN(const std::vector<u64> pages, protection_.wait_for_writes(kPollMilliseconds));
  const TimePoint now = Clock::now();
  std::vector<std::size_t> written;
  for (const u64 page : pages) {
    const auto unit = units_.at(page);
    if (unit) written.push_back(*unit);
  }
  std::sort(written.begin(), written.end());
  written.erase(std::unique(written.begin(), written.end()), written.end());
  std::deque<Wait> waits;
  Phase phase;
  {
    const std::lock_guard lock(mutex_);
    phase = phase_;
    if (phase == Phase::kTracking) return let_through(written);
    for (const std::size_t unit : written) held_.push_back({unit, now});
    if (phase != Phase::kFreezing) waits.swap(held_);
  }
  for (const Wait& wait : waits) VMSIEVE_TRY(phase == Phase::kFrozen ? copy_early(wait) : hurry(wait));
  return {};
}

// Under mutex_, so that freeze() sees either a write that is held or a unit that is noted.
Result<void> LiveCapture::let_through(const std::vector<std::size_t>& units) {
  for (const std::size_t unit : units) {
    rewritten_[unit] = true;
    was_written_[unit] = true;
    VMSIEVE_TRY(protection_.release(units_.host(unit)));
  }
  return {};
}

Result<void> LiveCapture::hurry(const Wait& wait) {
  const std::lock_guard at_the_pipeline(pipeline_mutex_);
  if (failed_) return {};
  if (claim(wait.unit)) {
    VMSIEVE_TRY(copy_unit(wait.unit, wait.since + options_.longest_wait));
    note_wait(wait.since);
  } else if (states_[wait.unit] != State::kDone) {
    awaited_.push_back(wait);
  }
  return {};
}

Result<void> LiveCapture::check_awaited() {
  for (const Wait& wait : awaited_) {
    if (states_[wait.unit] == State::kDone) {
      note_wait(wait.since);
    } else if (Clock::now() - wait.since > options_.longest_wait) {
      return make_error(ErrorKind::kTimeout,
                        "a write of the guest waited {:.0f} s for room: the store is too slow",
                        ms_since(wait.since) / 1000);
    }
  }
  std::erase_if(awaited_, [&](const Wait& wait) { return states_[wait.unit] == State::kDone; });
  return {};
}

void LiveCapture::note_wait(TimePoint since) {
  const std::lock_guard lock(mutex_);
  ++figures_.waits;
  figures_.longest_wait_ms = std::max(figures_.longest_wait_ms, ms_since(since));
}

// None where it is in more than one mapping, which is not worth the trouble.
std::optional<std::vector<std::size_t>> LiveCapture::units_of(const PhysicalExtent& extent) const {
  const auto host = units_.host(memory_.layout(), extent.address, extent.bytes);
  if (!host) return std::nullopt;
  std::vector<std::size_t> found;
  for (u64 at = host->start; at < host->end; at = units_.host(found.back()).end) {
    const auto unit = units_.at(at);
    if (!unit) return std::nullopt;
    found.push_back(*unit);
  }
  return found;
}

bool LiveCapture::is_unwritten(GuestPhysical address, u64 bytes) const {
  const auto units = units_of({address, bytes});
  if (!units) return false;
  const std::lock_guard lock(mutex_);
  return !failed_ && std::ranges::none_of(*units, [&](std::size_t unit) { return rewritten_[unit]; });
}

// As protect_all(), for a few units. A write to one of them that comes before its protection is one of those
// that the caller is told of; one that comes after it is held by the kernel until the answering thread has
// mutex_, and noted anew.
Result<std::vector<bool>> LiveCapture::protect_again(std::span<const PhysicalExtent> extents) {
  std::vector<std::optional<std::vector<std::size_t>>> units;
  for (const PhysicalExtent& extent : extents) units.push_back(units_of(extent));
  std::vector<bool> written;
  std::vector<std::size_t> again;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& of_extent : units) {
      written.push_back(!of_extent || failed_);
      if (!of_extent) continue;
      for (const std::size_t unit : *of_extent) {
        if (!rewritten_[unit]) continue;
        written.back() = true;
        again.push_back(unit);
      }
    }
  }
  std::ranges::sort(again);
  again.erase(std::unique(again.begin(), again.end()), again.end());
  for (const std::size_t unit : again) note_resident(unit);
  {
    const std::lock_guard lock(mutex_);
    for (const ByteRange& range : host_ranges(units_, again)) VMSIEVE_TRY(protection_.protect(range));
    for (const std::size_t unit : again) rewritten_[unit] = false;
  }
  for (const std::size_t unit : again) {
    const MemoryUnits::Place place = units_.place(unit);
    const auto present = memory_.present_block(place.block, place.pages.first_page, place.pages.pages);
    resident_[place.block].insert(resident_[place.block].end(), present.begin(), present.end());
  }
  return written;
}

// Before the unit is protected: afterwards pages that were never touched look as if they were swapped out.
void LiveCapture::note_resident(std::size_t unit) {
  const MemoryUnits::Place place = units_.place(unit);
  std::vector<LiveMemory::PageRun>& found = resident_[place.block];
  if (memory_.is_shared(place.block)) {
    found.push_back({place.pages.first_page, place.pages.pages});
  } else {
    const auto runs = memory_.resident_block(place.block, place.pages.first_page, place.pages.pages);
    found.insert(found.end(), runs.begin(), runs.end());
  }
}

// ---- the instant ----

Result<void> LiveCapture::freeze() {
  std::vector<std::size_t> rewritten;
  {
    const std::lock_guard lock(mutex_);
    phase_ = Phase::kFreezing;
    for (std::size_t unit = 0; unit < rewritten_.size(); ++unit) {
      if (rewritten_[unit]) rewritten.push_back(unit);
    }
  }
  u64 bytes = 0;
  for (const std::size_t unit : rewritten) {
    note_resident(unit);
    bytes += units_.place(unit).pages.pages * kPageSize;
  }
  for (const ByteRange& range : host_ranges(units_, rewritten)) VMSIEVE_TRY(protection_.protect(range));
  for (auto& runs : resident_) normalise(runs);
  const std::lock_guard lock(mutex_);
  phase_ = Phase::kFrozen;
  figures_.rewritten_bytes = bytes;
  if (error_) return *error_;
  return {};
}

std::vector<LiveMemory::PageRun> LiveCapture::resident(u32 block, u64 first, u64 count) const {
  std::vector<LiveMemory::PageRun> found;
  const std::vector<LiveMemory::PageRun>& runs = resident_[block];
  auto run = std::partition_point(runs.begin(), runs.end(),
                                  [&](const LiveMemory::PageRun& r) { return r.first + r.count <= first; });
  for (; run != runs.end() && run->first < first + count; ++run) {
    const u64 begin = std::max(first, run->first);
    const u64 end = std::min(first + count, run->first + run->count);
    found.push_back({begin, end - begin});
  }
  return found;
}

// ---- copying ----

// A write that does not wait for the plan: until it goes through, QEMU may not answer, and it is by its
// answer that the plan begins.
Result<void> LiveCapture::copy_early(const Wait& wait) {
  if (!claim(wait.unit)) return {};
  const MemoryUnits::Place place = units_.place(wait.unit);
  VMSIEVE_ASSIGN(AnonymousMemory bytes, AnonymousMemory::make(place.pages.pages * kPageSize));
  const auto runs = resident(place.block, place.pages.first_page, place.pages.pages);
  for (const LiveMemory::PageRun& run : runs) {
    const std::span<std::byte> out(bytes.data() + (run.first - place.pages.first_page) * kPageSize,
                                   run.count * kPageSize);
    VMSIEVE_TRY(memory_.read_block(place.block, run.first * kPageSize, out));
  }
  VMSIEVE_TRY(check_untouched(wait.unit, runs));
  VMSIEVE_ASSIGN(std::vector<ByteRange> unprotected_pages, unprotected(wait.unit));
  VMSIEVE_TRY(protection_.release(units_.host(wait.unit)));
  {
    const std::lock_guard lock(mutex_);
    early_.push_back({wait.unit, std::move(bytes), std::move(unprotected_pages)});
  }
  states_[wait.unit] = State::kDone;
  note_wait(wait.since);
  return {};
}

Result<void> LiveCapture::submit_early(const EarlyCopy& copy) {
  VMSIEVE_TRY(check_zeros(copy.unit, copy.unprotected));
  const u64 first_page = units_.place(copy.unit).pages.first_page;
  for (std::size_t i = chunks_.first_chunk[copy.unit]; i < chunks_.first_chunk[copy.unit + 1]; ++i) {
    if (failed_) return {};  // as in copy_unit()
    const Chunk& chunk = chunks_.chunks[i];
    std::byte* const buffer = pipeline_->acquire_in_background();
    if (buffer == nullptr) return Error(ErrorKind::kIo, "the store cannot be written");
    std::byte* to = buffer;
    for (const BlockPages& run : chunk.runs) {
      std::memcpy(to, copy.bytes.data() + (run.first_page - first_page) * kPageSize, run.pages * kPageSize);
      to += run.pages * kPageSize;
    }
    copied_pages_ += chunk.pages;
    pipeline_->submit(chunk, buffer);
  }
  return {};
}

// They take memory beside the pool: so much of the pool stays untouched until they are in it. Only of a pool
// that has buffers to spare: submit_early() waits for one that acquire_in_background() does not leave to
// others.
Result<void> LiveCapture::submit_early_copies() {
  std::vector<EarlyCopy> copies;
  {
    const std::lock_guard lock(mutex_);
    copies.swap(early_);
  }
  std::vector<std::byte*> untouched;
  const u64 buffer_bytes = pipeline_->chunk_pages() * kPageSize;
  u64 bytes = 0;
  for (const EarlyCopy& copy : copies) bytes += copy.bytes.size();
  const u64 buffers = pipeline_->pool_buffers();
  const u64 most = buffers < kSparingBuffers ? 0 : std::min(bytes / buffer_bytes, buffers / 4 * 3);
  while (untouched.size() < most) {
    std::byte* const buffer = pipeline_->try_acquire();
    if (buffer == nullptr) break;
    untouched.push_back(buffer);
  }
  for (EarlyCopy& copy : copies) {
    const auto submitted = submit_early(copy);
    bytes -= copy.bytes.size();
    copy.bytes = {};
    while (!untouched.empty() && (untouched.size() * buffer_bytes > bytes || !submitted)) {
      pipeline_->cancel(untouched.back());
      untouched.pop_back();
    }
    VMSIEVE_TRY(submitted);
  }
  return {};
}

bool LiveCapture::claim(std::size_t unit) {
  State expected = State::kPending;
  return states_[unit].compare_exchange_strong(expected, State::kCopying);
}

Result<void> LiveCapture::copy_chunk(const Chunk& chunk, std::optional<TimePoint> deadline) {
  std::byte* const buffer =
      deadline ? pipeline_->acquire_until(*deadline) : pipeline_->acquire_in_background();
  if (buffer == nullptr) {
    if (pipeline_->failed()) return Error(ErrorKind::kIo, "the store cannot be written");
    return Error(ErrorKind::kTimeout, "a write of the guest waited too long for room: the store is too slow");
  }
  std::byte* to = buffer;
  for (const BlockPages& run : chunk.runs) {
    const u64 bytes = run.pages * kPageSize;
    if (auto read = memory_.read_block(chunk.block, run.first_page * kPageSize, {to, bytes}); !read.ok()) {
      pipeline_->cancel(buffer);
      return read.error();
    }
    to += bytes;
  }
  copied_pages_ += chunk.pages;
  pipeline_->submit(chunk, buffer);
  return {};
}

// Every page that was copied must still be protected: only this class releases pages, and not before they are
// copied. One that is not has been taken out of the mapping, and its content with it (madvise(2)
// MADV_DONTNEED, a hole punched into the file).
Result<void> LiveCapture::check_untouched(std::size_t unit, std::span<const LiveMemory::PageRun> runs) const {
  const ByteRange host = units_.host(unit);
  VMSIEVE_ASSIGN(const std::vector<bool> is_protected, pagemap_.write_protected(host.start, host.end));
  const MemoryUnits::Place place = units_.place(unit);
  for (const LiveMemory::PageRun& run : runs) {
    for (u64 page = run.first; page < run.first + run.count; ++page) {
      if (is_protected[page - place.pages.first_page]) continue;
      return make_error(
          ErrorKind::kBusy,
          "page {} of RAM block '{}' was taken from the guest before it was copied (a balloon, or "
          "memory being unplugged)",
          page, memory_.layout().blocks[place.block].name);
    }
  }
  return {};
}

// Of a unit that is claimed and not released. A page that was taken out of the mapping before the instant,
// and written to after that, is one: no thread was told of the write.
Result<std::vector<ByteRange>> LiveCapture::unprotected(std::size_t unit) const {
  const ByteRange host = units_.host(unit);
  return pagemap_.populated(host.start, host.end, Population::kUnprotected);
}

// A page that passes for zeros because it was not there at start() must not have been written unnoticed.
Result<void> LiveCapture::check_zeros(std::size_t unit, const std::vector<ByteRange>& unprotected) const {
  const u32 block = units_.place(unit).block;
  const u64 start = units_.block(block).start;
  for (const ByteRange& range : unprotected) {
    const u64 first = (range.start - start) >> kPageShift;
    const u64 end = (range.end - start) >> kPageShift;
    const std::vector<PageRun>& known = known_[block];
    auto run = std::partition_point(known.begin(), known.end(),
                                    [&](const PageRun& r) { return r.first_page + r.pages <= first; });
    for (; run != known.end() && run->first_page < end; ++run) {
      if (run->kind == RunKind::kFree) continue;
      return make_error(ErrorKind::kBusy,
                        "page {} of RAM block '{}' was taken from the guest and given back while its memory "
                        "was being protected (a balloon, or memory being unplugged)",
                        std::max(first, run->first_page), memory_.layout().blocks[block].name);
    }
  }
  return {};
}

Result<void> LiveCapture::copy_unit(std::size_t unit, std::optional<TimePoint> deadline) {
  const std::size_t first = chunks_.first_chunk[unit];
  const std::size_t end = chunks_.first_chunk[unit + 1];
  std::vector<LiveMemory::PageRun> copied;
  for (std::size_t i = first; i < end; ++i) {
    if (failed_) return {};  // the error is known, and the store may be slow
    VMSIEVE_TRY(copy_chunk(chunks_.chunks[i], deadline));
    for (const BlockPages& run : chunks_.chunks[i].runs) copied.push_back({run.first_page, run.pages});
  }
  if (!copied.empty()) VMSIEVE_TRY(check_untouched(unit, copied));
  VMSIEVE_ASSIGN(const std::vector<ByteRange> unprotected_pages, unprotected(unit));
  VMSIEVE_TRY(check_zeros(unit, unprotected_pages));
  VMSIEVE_TRY(protection_.release(units_.host(unit)));
  states_[unit] = State::kDone;
  return {};
}

// Lets go of the units that have nothing to copy, many at once; few enough that a write to one of them, which
// waits meanwhile, does not wait for all of memory to be asked about.
Result<void> LiveCapture::release_unused() {
  std::vector<std::size_t> unused;
  for (std::size_t unit = 0; unit < units_.count(); ++unit) {
    if (chunks_.first_chunk[unit] == chunks_.first_chunk[unit + 1] && claim(unit)) unused.push_back(unit);
    if (unused.size() == kReleasedAtOnce) VMSIEVE_TRY(release_claimed(unused));
  }
  return release_claimed(unused);
}

Result<void> LiveCapture::release_claimed(std::vector<std::size_t>& units) {
  for (const std::size_t unit : units) {
    VMSIEVE_ASSIGN(const std::vector<ByteRange> unprotected_pages, unprotected(unit));
    VMSIEVE_TRY(check_zeros(unit, unprotected_pages));
  }
  for (const ByteRange& range : host_ranges(units_, units)) VMSIEVE_TRY(protection_.release(range));
  for (const std::size_t unit : units) states_[unit] = State::kDone;
  units.clear();
  return {};
}

std::vector<std::size_t> LiveCapture::by_recent_writes() const {
  std::vector<std::size_t> order(units_.count());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const std::lock_guard lock(mutex_);
  std::stable_partition(order.begin(), order.end(), [&](std::size_t unit) { return was_written_[unit]; });
  return order;
}

void LiveCapture::copy_in_background(const ProgressFunction* progress) {
  for (std::size_t i = next_in_order_++; i < order_.size() && !failed_; i = next_in_order_++) {
    const std::size_t unit = order_[i];
    if (!claim(unit)) continue;
    if (auto copied = copy_unit(unit, std::nullopt); !copied.ok()) fail(copied.error());
    if (progress != nullptr) (*progress)({"reading", copied_pages_ * kPageSize, pages_to_copy_ * kPageSize});
  }
}

Result<void> LiveCapture::copy(const PagePlan& plan, CapturePipeline& pipeline, unsigned threads,
                               const ProgressFunction& progress) {
  chunks_ = cut_unit_chunks(plan, units_, pipeline.chunk_pages());
  for (const BlockPlan& block : plan.blocks) known_.push_back(block.known);
  pages_to_copy_ = plan.read_pages;
  order_ = by_recent_writes();
  pipeline_ = &pipeline;
  {
    const std::lock_guard lock(mutex_);
    phase_ = Phase::kCopying;
  }
  if (auto released = release_unused(); !released.ok()) fail(released.error());
  if (auto submitted = submit_early_copies(); !submitted.ok()) fail(submitted.error());
  std::vector<std::thread> helpers;
  for (unsigned i = 1; i < threads; ++i) helpers.emplace_back([this] { copy_in_background(nullptr); });
  copy_in_background(&progress);
  for (std::thread& helper : helpers) helper.join();
  // What the answering thread has claimed may still be on its way.
  for (std::size_t unit = 0; unit < units_.count() && !failed_; ++unit) {
    while (states_[unit] != State::kDone && !failed_)
      std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  protection_.end();
  // All units are done, so nobody adds to them any more; after an error somebody might, and they are left.
  const auto submitted = submit_early_copies();
  {
    // When the answering thread has left the pipeline after an error it does not come back.
    const std::lock_guard at_the_pipeline(pipeline_mutex_);
    const std::lock_guard lock(mutex_);
    if (error_) return *error_;
  }
  VMSIEVE_TRY(submitted);
  progress({"reading", copied_pages_ * kPageSize, pages_to_copy_ * kPageSize});
  return {};
}

void LiveCapture::fail(const Error& error) {
  {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = error;
  }
  failed_ = true;
  protection_.end();
}

LiveFigures LiveCapture::figures() const {
  const std::lock_guard lock(mutex_);
  return figures_;
}

}  // namespace vmsieve
