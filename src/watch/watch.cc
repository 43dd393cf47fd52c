// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/watch/watch.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <thread>

#include "vmsieve/disks/tidy.h"
#include "vmsieve/formats/libvirt_image.h"
#include "vmsieve/qemu/qmp.h"
#include "vmsieve/qemu/vm_lock.h"
#include "vmsieve/restore/preflight.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve {

namespace {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;

constexpr std::chrono::milliseconds kAnswerPatience{5000};
constexpr std::chrono::milliseconds kDeathPatience{10000};
constexpr std::chrono::milliseconds kShortLife{10000};
constexpr std::chrono::milliseconds kLibvirtBeat{200};
/// Between attempts to bring a VM back: twice as long each time.
constexpr std::chrono::milliseconds kFirstRetry{1000};
constexpr std::chrono::milliseconds kLastRetry{30000};
/// So often the newest checkpoint is tried before older ones are, where the reason may pass.
constexpr int kAttemptsWithNewest = 3;
/// While a store takes nothing, beats are twice as long each time, up to this or, if it is longer, a beat:
/// each attempt is a full save.
constexpr std::chrono::milliseconds kLongestBeat{60000};

/// Will the same attempt fail again, whatever happens around it?
bool is_lasting(const Error& error) {
  switch (error.kind()) {
    case ErrorKind::kDamaged:
    case ErrorKind::kNotFound:
    case ErrorKind::kUnsupported:
    case ErrorKind::kUsage: return true;
    default: return false;
  }
}

class Watch {
 public:
  Watch(VmAddress vm, Store& store, const WatchOptions& options, const WatchWait& wait,
        const std::function<void(const WatchEvent&)>& tell, const ProgressFunction& progress)
      : vm_(std::move(vm)), store_(store), options_(options), wait_(wait), tell_(tell), progress_(progress) {
    save_ = options.save;
    save_.incremental = true;
    save_.periodic = true;
  }

  Result<void> run() {
    if (options_.restart) VMSIEVE_TRY(check_restart_options());
    VMSIEVE_ASSIGN(process_, open_process(vm_.process.pid));
    VMSIEVE_ASSIGN(lock_, VmLock::take_for_watch(vm_.process.pid));
    answered_ = Clock::now();
    for (TimePoint beat = Clock::now();;) {
      take();
      beat = next_beat(beat);
      if (wait_(process_.get(), beat)) return {};
      if (const auto death = died()) {
        tell_({.kind = WatchEvent::Kind::kDied, .error = *death});
        if (!options_.restart) return *death;
        if (is_enough_after_short_life()) return {};
        VMSIEVE_ASSIGN(const bool is_back, bring_back());
        if (!is_back) return {};
        beat = Clock::now();
      }
    }
  }

 private:
  /// What is wrong with them is said now, not when the VM has died.
  Result<void> check_restart_options() const {
    if (options_.restore.qemu_executable) VMSIEVE_TRY(find_executable(*options_.restore.qemu_executable));
    return {};
  }

  void take() {
    auto saved = save(vm_, store_, save_, progress_);
    if (!saved.ok()) {
      const bool store_fails = saved.error().kind() == ErrorKind::kIo;
      beat_ = store_fails ? std::max(options_.every, std::min(2 * beat_, kLongestBeat)) : options_.every;
      tell_({.kind = WatchEvent::Kind::kFailed, .error = saved.error(), .again_in = beat_});
      reach_libvirt_again();
      return;
    }
    beat_ = options_.every;
    answered_ = Clock::now();
    barren_ = 0;
    tell_({.kind = WatchEvent::Kind::kSaved, .saved = &*saved, .checkpoint = saved->manifest.id});
    thin();
  }

  TimePoint next_beat(TimePoint beat) {
    const TimePoint now = Clock::now();
    u64 skipped = 0;
    for (beat += beat_; beat <= now; beat += beat_) ++skipped;
    if (skipped > 0) tell_({.kind = WatchEvent::Kind::kSkipped, .skipped = skipped});
    return beat;
  }

  /// The checkpoints that a watch has taken of this VM, oldest first.
  std::vector<std::string> periodic() const {
    std::vector<std::string> ids;
    const auto listing = store_.list();  // what is removed is not decided by a hint
    if (!listing.ok()) return ids;
    for (const Manifest& m : listing->checkpoints) {
      const bool same = m.vm_name == vm_.process.name &&
                        (!m.vm_name.empty() || m.vm_pid == static_cast<u64>(vm_.process.pid));
      if (m.periodic && same) ids.push_back(m.id);
    }
    return ids;
  }

  void thin() {
    if (options_.keep == 0) return;
    const std::vector<std::string> ids = periodic();
    for (std::size_t i = 0; i + options_.keep < ids.size(); ++i) {
      const auto removed = store_.remove(ids[i]);
      if (removed.ok()) tell_({.kind = WatchEvent::Kind::kRemoved, .checkpoint = ids[i]});
    }
    [[maybe_unused]] const auto swept = store_.sweep();  // gives room back
    (void)tidy_disks(store_, progress_);
  }

  /// Why the VM is to be taken for dead; none when it lives.
  std::optional<Error> died() {
    const pid_t pid = vm_.process.pid;
    if (has_ended(process_.get())) return make_error(ErrorKind::kVanished, "process {} has ended", pid);
    if (Clock::now() - answered_ < options_.dead_after) return std::nullopt;
    // No save has come through for so long: does its monitor answer?
    auto qmp = QmpClient::connect(vm_.qmp_path, kAnswerPatience);
    if (qmp.ok() && (*qmp)->execute("query-status", QmpClient::Json::object(), kAnswerPatience).ok()) {
      answered_ = Clock::now();
      return std::nullopt;
    }
    return make_error(ErrorKind::kVanished, "process {} has not answered for {} s", pid,
                      std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - answered_).count());
  }

  /// A guest that dies again at once is not brought back at once. True when the watch is to end.
  bool is_enough_after_short_life() {
    const TimePoint earliest = restarted_ + kShortLife;
    const TimePoint now = Clock::now();
    if (earliest <= now) return false;
    tell_({.kind = WatchEvent::Kind::kWaiting,
           .error = Error(ErrorKind::kVanished, "it ended soon after it was brought back"),
           .again_in = std::chrono::ceil<std::chrono::milliseconds>(earliest - now)});
    return wait_(-1, earliest);
  }

  /// False when the watch is to end.
  Result<bool> bring_back() {
    if (!has_ended(process_.get())) {
      ::syscall(SYS_pidfd_send_signal, process_.get(), SIGKILL, nullptr, 0);
      if (!has_ended(process_.get(), kDeathPatience))
        return make_error(ErrorKind::kTimeout, "process {} does not end", vm_.process.pid);
    }
    auto again_in = kFirstRetry;
    for (int attempt = 1;; ++attempt, again_in = std::min(2 * again_in, kLastRetry)) {
      const auto back = bring_back_once(attempt > kAttemptsWithNewest);
      if (back.ok()) return true;
      if (is_lasting(back.error())) return back.error().with_context("the VM cannot be brought back");
      tell_({.kind = WatchEvent::Kind::kWaiting, .error = back.error(), .again_in = again_in});
      if (wait_(-1, Clock::now() + again_in)) return false;
    }
  }

  /// From the newest checkpoint that does it, `go_back`: or from an older one, also where the newest may do
  /// it later; else the last error, one that may pass rather than another.
  Result<void> bring_back_once(bool go_back) {
    std::vector<std::string> ids = periodic();
    if (ids.empty()) return Error(ErrorKind::kNotFound, "no checkpoint of it was taken");
    // The newest one whose guest lived on for another checkpoint; what was saved before may be what kills it.
    for (std::size_t i = 0; i < barren_ && ids.size() > 1; ++i) {
      tell_(
          {.kind = WatchEvent::Kind::kUnusable,
           .error = Error(ErrorKind::kRefused, "a VM that was brought back ended before its next checkpoint"),
           .checkpoint = ids.back()});
      ids.pop_back();
    }
    std::optional<Error> last;
    std::optional<Error> passing;
    for (auto id = ids.rbegin(); id != ids.rend(); ++id) {
      const auto restored = bring_back_from(*id);
      if (!restored.ok()) {
        // An older one that fails for the same reason says that the reason is not in the checkpoints. They
        // are not gone through then: it could pass in the midst of it, and what the guest did be lost.
        const bool same = last && !is_lasting(*last) && last->message() == restored.error().message();
        last = restored.error();
        if (!is_lasting(*last)) passing = last;
        tell_({.kind = WatchEvent::Kind::kUnusable, .error = *last, .checkpoint = *id});
        if (same || (passing && !go_back)) break;
        continue;
      }
      tell_({.kind = WatchEvent::Kind::kRestarted, .restored = &*restored, .checkpoint = *id});
      ++barren_;
      restarted_ = Clock::now();
      VMSIEVE_ASSIGN(vm_, resolve_vm(restored->vm.empty() ? restored->qmp_path : restored->vm));
      VMSIEVE_ASSIGN(process_, open_process(restored->pid));
      lock_.reset();
      VMSIEVE_ASSIGN(lock_, VmLock::take_for_watch(restored->pid));
      answered_ = restarted_;
      return {};
    }
    return passing ? *passing : *last;
  }

  /// The guest runs at once; until all of its memory is there, no checkpoint can be taken of it.
  Result<RestoreReport> bring_back_from(const std::string& id) {
    VMSIEVE_ASSIGN(const auto reader, CheckpointReader::open(store_, id));
    if (belongs_to_libvirt(reader->manifest(), options_.restore)) return bring_domain_back(*reader);
    VMSIEVE_ASSIGN(const Restored restored, restore(store_, id, options_.restore, progress_));
    if (restored.server != nullptr) VMSIEVE_TRY(restored.server->wait(progress_));
    if (restored.records) (void)keep_working_set(store_, id, *restored.server).ok();
    return restored.report;
  }

  Result<RestoreReport> bring_domain_back(const CheckpointReader& reader) {
    // libvirt may not have seen yet that the QEMU before has ended.
    for (const TimePoint end = Clock::now() + kDeathPatience;;) {
      auto restored = restore_in_libvirt(store_, reader, options_.restore, progress_);
      if (restored || restored.error().kind() != ErrorKind::kRefused || Clock::now() > end) return restored;
      std::this_thread::sleep_for(kLibvirtBeat);
    }
  }

  /// The way to a domain's monitor ends with libvirtd; its guest does not.
  void reach_libvirt_again() {
    if (!vm_.libvirt || has_ended(process_.get())) return;
    auto vm = resolve_vm("libvirt:" + vm_.libvirt->uuid());
    if (vm.ok() && vm->process.pid == vm_.process.pid) vm_ = std::move(*vm);
  }

  VmAddress vm_;
  Store& store_;
  const WatchOptions& options_;
  const WatchWait& wait_;
  const std::function<void(const WatchEvent&)>& tell_;
  const ProgressFunction& progress_;
  SaveOptions save_;
  UniqueFd process_;
  std::optional<VmLock> lock_;
  std::chrono::milliseconds beat_ = options_.every;  ///< longer while the store fails
  TimePoint answered_;
  TimePoint restarted_{};
  std::size_t barren_ = 0;  ///< restarts that no checkpoint followed
};

}  // namespace

Result<void> watch(VmAddress vm, Store& store, const WatchOptions& options, const WatchWait& wait,
                   const std::function<void(const WatchEvent&)>& tell, const ProgressFunction& progress) {
  return Watch(std::move(vm), store, options, wait, tell, progress).run();
}

}  // namespace vmsieve
