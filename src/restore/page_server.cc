// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/page_server.h"

#include <algorithm>
#include <cstring>
#include <system_error>

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmsieve/base/thread_priority.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/qemu/remote_userfaultfd.h"

namespace vmsieve {

namespace {

constexpr int kFaultPollMilliseconds = 20;
constexpr std::chrono::milliseconds kProgressInterval{100};
// While the guest asks for one page after the other, so long and no longer.
constexpr std::chrono::milliseconds kHeadStart{1000};
constexpr std::chrono::milliseconds kAskedLately{8};
constexpr std::chrono::milliseconds kHeldBack{2};  // at a time
constexpr u64 kFirstBytes = 64 * kKiB;  // around a page that is waited for, before the rest of its frame
constexpr u64 kZeroBytes = 2 * kMiB;    // at once, where zeros are waited for

}  // namespace

struct PageServer::Scratch {
  CheckpointReader::Scratch frame;
  std::vector<std::byte> fill;  ///< kMaxFrameBytes of filled_with
  std::optional<u8> filled_with;
  std::vector<std::byte> huge_page;
};

PageServer::PageServer(std::shared_ptr<const CheckpointReader> reader, MissingPlan plan, Target target,
                       MissingPages missing, int theirs, const Options& options)
    : reader_(std::move(reader)),
      plan_(std::move(plan)),
      target_(std::move(target)),
      missing_(std::move(missing)),
      theirs_(theirs),
      first_(plan_.jobs_of(options.first)),
      record_(options.record),
      states_(plan_.jobs().size(), JobState::kOpen),
      jobs_left_(plan_.jobs().size()),
      all_placed_(plan_.jobs().empty()),
      is_wanted_(plan_.jobs().size()) {}

Result<std::unique_ptr<PageServer>> PageServer::start(std::shared_ptr<const CheckpointReader> reader,
                                                      MissingPlan plan, const Target& target,
                                                      const Options& options) {
  VMSIEVE_CHECK(options.threads > 0);
  VMSIEVE_ASSIGN(SharedUserfaultfd shared, share_userfaultfd(target.qemu));
  const auto undo = [&](const Error& error) {
    (void)close_descriptor(target.qemu, shared.theirs).ok();
    return error;
  };
  auto missing = MissingPages::make(std::move(shared.ours));
  if (!missing.ok()) return undo(missing.error());
  for (const ByteRange& range : plan.ranges()) {
    if (auto added = missing->add(range); !added.ok()) {
      missing->end();
      return undo(added.error());
    }
  }
  std::unique_ptr<PageServer> server{new PageServer{std::move(reader), std::move(plan), target,
                                                    std::move(*missing), shared.theirs, options}};
  if (auto prepared = server->prepare(options.threads); !prepared.ok()) {
    server->complete_ = true;  // nothing has been promised yet
    if (server->guard_) server->guard_->dismiss();
    server->missing_.end();
    return undo(prepared.error());
  }
  return server;
}

Result<void> PageServer::prepare(unsigned threads) {
  VMSIEVE_ASSIGN(qemu_, open_process(target_.qemu));
  VMSIEVE_ASSIGN(log_, open_file(target_.log_path, O_WRONLY | O_APPEND));
  VMSIEVE_ASSIGN(guard_, MissingGuard::make(qemu_.get(), log_.get()));
  u64 largest = kZeroBytes;
  for (const MissingJob& job : plan_.jobs()) {
    if (job.huge_page) largest = std::max(largest, job.huge_page->end - job.huge_page->start);
  }
  zeros_.resize(largest);
  lock_ = VmLock::take_for_fill(target_.qemu);
  if (!lock_->ok()) return lock_->error();
  try {
    workers_.emplace_back([this] { work(true); });
    for (unsigned i = 0; i < threads; ++i) workers_.emplace_back([this] { work(false); });
    fault_thread_ = std::thread([this] { serve_faults(); });
  } catch (const std::system_error& error) {
    stopping_ = true;
    urgent_comes_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    return make_error(ErrorKind::kIo, "cannot start threads: {}", error.what());
  }
  return {};
}

PageServer::~PageServer() {
  {
    const std::lock_guard lock(mutex_);
    if (!complete_ && !error_ && qemu_.valid())
      ::syscall(SYS_pidfd_send_signal, qemu_.get(), SIGKILL, nullptr, 0);
    stopping_ = true;
  }
  urgent_comes_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  if (fault_thread_.joinable()) fault_thread_.join();
  // QEMU has its signal, and its log says why: the guard's words would be wrong.
  if (error_ && guard_) guard_->dismiss();
}

// ---- faults ----

void PageServer::serve_faults() {
  while (!stopping_) {
    const auto faults = missing_.wait_for_faults(kFaultPollMilliseconds);
    if (!faults.ok()) return fail(faults.error());
    for (const u64 address : *faults) {
      if (const auto served = serve_fault(address); !served.ok()) return fail(served.error());
    }
    if (all_placed_) return finish();
    if (const auto kept = keep_guard(); !kept.ok()) return fail(kept.error());
  }
}

/// A guard that somebody has killed is replaced.
Result<void> PageServer::keep_guard() {
  if (guard_->stands() || stopping_) return {};
  if (has_ended(qemu_.get())) return ended_error();
  VMSIEVE_ASSIGN(guard_, MissingGuard::make(qemu_.get(), log_.get()));
  return {};
}

Result<void> PageServer::serve_fault(u64 address) {
  const Clock::time_point told = Clock::now();
  last_asked_ = told;
  const auto place = plan_.find(address);
  if (!place) return {};  // none of ours: the kernel tells of registered memory only
  if (place->job) {
    note_wanted(*place->job);
    const std::lock_guard lock(mutex_);
    switch (states_[*place->job]) {
      case JobState::kOpen:
        urgent_.push_back({*place->job, address, told});
        urgent_comes_.notify_one();
        return {};
      case JobState::kTaken: waiting_.push_back({*place->job, address}); return {};
      case JobState::kDone: break;  // discarded since, or there already
    }
  }
  VMSIEVE_TRY(place_zeros(*place, address));
  note_fault(told);
  return {};
}

Result<void> PageServer::place_zeros(const MissingPlan::Place& place, u64 address) {
  if (place.page_bytes != kPageSize) {
    const u64 start = round_down(address, place.page_bytes);
    const auto placed = missing_.place(start, std::span{zeros_}.first(place.page_bytes));
    if (!placed.ok() && placed.error().kind() != ErrorKind::kDamaged) return placed.error();
    missing_.wake({start, start + place.page_bytes});
    return {};
  }
  ByteRange range{address, address + kPageSize};
  if (!place.job) {
    range.start = std::max(place.zeros.start, round_down(address, kZeroBytes));
    range.end = std::min(place.zeros.end, round_down(address, kZeroBytes) + kZeroBytes);
  }
  return missing_.place_zeros(range);
}

void PageServer::note_fault(Clock::time_point told) {
  const double ms = std::chrono::duration<double, std::milli>(Clock::now() - told).count();
  const std::lock_guard lock(mutex_);
  ++figures_.faults;
  figures_.longest_fault_ms = std::max(figures_.longest_fault_ms, ms);
}

// ---- jobs ----

/// A guest that has just begun runs from one missing page to the next: what is filled beside it would make it
/// wait for a core, and for the bytes, at each of them.
bool PageServer::guest_needs_the_cores() const {
  const Clock::time_point now = Clock::now();
  return now - began_ < kHeadStart && (record_ || now - last_asked_.load() < kAskedLately);
}

void PageServer::note_wanted(std::size_t job) {
  if (is_wanted_[job] || Clock::now() - began_ >= kHeadStart) return;
  is_wanted_[job] = true;
  wanted_.push_back(job);
}

bool PageServer::take(std::size_t job) {
  const std::lock_guard lock(mutex_);
  if (states_[job] != JobState::kOpen) return false;
  states_[job] = JobState::kTaken;
  return true;
}

std::optional<std::size_t> PageServer::next_first() {
  while (next_first_ < first_.size()) {
    const std::size_t i = next_first_.fetch_add(1);
    if (i < first_.size() && take(first_[i])) return first_[i];
  }
  return std::nullopt;
}

std::optional<std::size_t> PageServer::next_open() {
  for (;;) {
    const std::size_t job = next_job_.fetch_add(1);
    if (job >= states_.size()) return std::nullopt;
    if (take(job)) return job;
  }
}

void PageServer::work(bool faults_only) {
  if (!faults_only) lower_priority(kBesideGuestNice);
  Scratch scratch;
  while (!stopping_) {
    std::optional<Urgent> urgent;
    std::optional<std::size_t> job;
    {
      std::unique_lock lock(mutex_);
      if (faults_only) urgent_comes_.wait(lock, [&] { return stopping_ || !urgent_.empty(); });
      if (!urgent_.empty()) {
        urgent = urgent_.front();
        urgent_.pop_front();
        JobState& state = states_[urgent->job];
        // Taken since it was told of.
        if (state != JobState::kOpen) {
          if (state == JobState::kTaken) waiting_.push_back({urgent->job, urgent->address});
          const bool done = state == JobState::kDone;
          lock.unlock();
          if (done) missing_.wake({urgent->address, urgent->address + kPageSize});
          continue;
        }
        state = JobState::kTaken;
      } else if (!faults_only && next_first_ >= first_.size() && guest_needs_the_cores()) {
        urgent_comes_.wait_for(lock, kHeldBack);
        continue;
      }
    }
    if (urgent) job = urgent->job;
    if (!job && !faults_only) {
      job = next_first();
      if (job) first_jobs_ += 1;
    }
    if (!job && !faults_only) job = next_open();
    if (!job) {
      if (faults_only) continue;
      return;
    }
    if (const auto done = do_job(*job, urgent ? urgent->address : 0, scratch); !done.ok())
      return fail(done.error());
    if (urgent) note_fault(urgent->told);
    job_is_done(*job);
  }
}

void PageServer::job_is_done(std::size_t job) {
  std::vector<u64> again;
  {
    const std::lock_guard lock(mutex_);
    states_[job] = JobState::kDone;
    for (const MissingPiece& piece : plan_.jobs()[job].pieces) figures_.pages += piece.pages;
    for (const Waiting& waiting : waiting_) {
      if (waiting.job == job) again.push_back(waiting.address);
    }
    std::erase_if(waiting_, [&](const Waiting& waiting) { return waiting.job == job; });
    if (--jobs_left_ == 0) all_placed_ = true;
  }
  // They were woken when their pages came, unless those have been discarded since: then they ask again.
  for (const u64 address : again) missing_.wake({address, address + kPageSize});
}

Result<std::span<const std::byte>> PageServer::piece_bytes(const MissingPiece& piece,
                                                           Scratch& scratch) const {
  const u64 bytes = piece.pages * kPageSize;
  if (piece.frame) {
    VMSIEVE_ASSIGN(const auto frame, reader_->read_frame(*piece.frame, scratch.frame));
    return frame.subspan(piece.page_in_frame * kPageSize, bytes);
  }
  if (scratch.filled_with != piece.fill || scratch.fill.size() < bytes) {
    scratch.fill.assign(std::max<u64>(bytes, kMaxFrameBytes), std::byte{piece.fill});
    scratch.filled_with = piece.fill;
  }
  return std::span<const std::byte>{scratch.fill}.first(bytes);
}

/// What is waited for goes in first.
Result<void> PageServer::place_piece(const MissingPiece& piece, std::span<const std::byte> bytes,
                                     u64 first_address) {
  const u64 end = piece.address + bytes.size();
  if (first_address < piece.address || first_address >= end) return missing_.place(piece.address, bytes);
  const u64 from = std::max(piece.address, round_down(first_address, kFirstBytes));
  const u64 to = std::min(end, round_down(first_address, kFirstBytes) + kFirstBytes);
  VMSIEVE_TRY(missing_.place(from, bytes.subspan(from - piece.address, to - from)));
  VMSIEVE_TRY(missing_.place(piece.address, bytes.first(from - piece.address)));
  return missing_.place(to, bytes.subspan(to - piece.address));
}

Result<void> PageServer::place_huge_page(const MissingJob& job, Scratch& scratch) {
  scratch.huge_page.assign(job.huge_page->end - job.huge_page->start, std::byte{0});
  for (const MissingPiece& piece : job.pieces) {
    VMSIEVE_ASSIGN(const auto bytes, piece_bytes(piece, scratch));
    std::memcpy(scratch.huge_page.data() + (piece.address - job.huge_page->start), bytes.data(),
                bytes.size());
  }
  return missing_.place(job.huge_page->start, scratch.huge_page);
}

Result<void> PageServer::do_job(std::size_t index, u64 first_address, Scratch& scratch) {
  const MissingJob& job = plan_.jobs()[index];
  if (job.huge_page) return place_huge_page(job, scratch);
  if (job.pieces.front().frame) {
    // Once, for all pieces.
    VMSIEVE_ASSIGN(const auto frame, reader_->read_frame(*job.pieces.front().frame, scratch.frame));
    const auto place = [&](const MissingPiece& piece, u64 first) {
      return place_piece(piece, frame.subspan(piece.page_in_frame * kPageSize, piece.pages * kPageSize),
                         first);
    };
    const auto wanted = std::ranges::find_if(job.pieces, [&](const MissingPiece& piece) {
      return first_address >= piece.address && first_address < piece.address + piece.pages * kPageSize;
    });
    if (wanted != job.pieces.end()) VMSIEVE_TRY(place(*wanted, first_address));
    for (auto piece = job.pieces.begin(); piece != job.pieces.end(); ++piece) {
      if (piece != wanted) VMSIEVE_TRY(place(*piece, 0));
    }
    return {};
  }
  for (const MissingPiece& piece : job.pieces) {
    VMSIEVE_ASSIGN(const auto bytes, piece_bytes(piece, scratch));
    VMSIEVE_TRY(place_piece(piece, bytes, first_address));
  }
  return {};
}

// ---- the end ----

/// By the fault thread.
void PageServer::finish() {
  missing_.end();
  guard_->dismiss();
  // If it cannot be closed it stays there, of no effect.
  (void)close_descriptor(target_.qemu, theirs_).ok();
  lock_.reset();
  {
    const std::lock_guard lock(mutex_);
    complete_ = true;
    stopping_ = true;
    figures_.fill_ms = watch_.ms();
    figures_.first_jobs = first_jobs_;
  }
  urgent_comes_.notify_all();
  ended_.notify_all();
}

Error PageServer::ended_error() const {
  return make_error(ErrorKind::kVanished, "the new QEMU, process {}, has ended", target_.qemu);
}

void PageServer::fail(const Error& error) {
  {
    const std::lock_guard lock(mutex_);
    if (error_ || complete_) return;
    // Which page it was that could not be placed any more is nobody's concern.
    error_ = error.kind() == ErrorKind::kVanished ? ended_error() : error;
    stopping_ = true;
  }
  ::syscall(SYS_pidfd_send_signal, qemu_.get(), SIGKILL, nullptr, 0);
  if (error.kind() != ErrorKind::kVanished) {
    const std::string words =
        fmt::format("vmsieve: {}: this VM's memory cannot be brought in, so it was ended\n", error.message());
    (void)!::write(log_.get(), words.data(), words.size());
  }
  urgent_comes_.notify_all();
  ended_.notify_all();
}

Result<void> PageServer::wait(const ProgressFunction& progress) {
  std::unique_lock lock(mutex_);
  while (!complete_ && !error_) {
    ended_.wait_for(lock, kProgressInterval);
    if (!progress) continue;
    const Progress at{"bringing memory in", figures_.pages * kPageSize, plan_.pages() * kPageSize};
    lock.unlock();
    progress(at);
    lock.lock();
  }
  if (error_) return *error_;
  return {};
}

std::optional<Error> PageServer::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

WorkingSet PageServer::working_set() const {
  WorkingSet frames;
  std::vector<bool> seen(reader_->index().frames.size());
  for (const std::size_t job : wanted_) {
    for (const MissingPiece& piece : plan_.jobs()[job].pieces) {
      if (!piece.frame || seen[*piece.frame]) continue;
      seen[*piece.frame] = true;
      frames.push_back(*piece.frame);
    }
  }
  return frames;
}

FillFigures PageServer::figures() const {
  const std::lock_guard lock(mutex_);
  return figures_;
}

}  // namespace vmsieve
