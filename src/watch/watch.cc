// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/watch/watch.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <thread>

#include "vmsieve/formats/libvirt_image.h"
#include "vmsieve/qemu/qmp.h"
#include "vmsieve/qemu/vm_lock.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve {

namespace {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;

constexpr std::chrono::milliseconds kAnswerPatience{5000};
constexpr std::chrono::milliseconds kDeathPatience{10000};
constexpr std::chrono::milliseconds kShortLife{10000};
constexpr std::chrono::milliseconds kLibvirtBeat{200};

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
        // A guest that dies again at once is not brought back at once.
        if (wait_(-1, restarted_ + kShortLife)) return {};
        VMSIEVE_TRY(bring_back());
        beat = Clock::now();
      }
    }
  }

 private:
  void take() {
    auto saved = save(vm_, store_, save_, progress_);
    if (!saved.ok()) {
      tell_({.kind = WatchEvent::Kind::kFailed, .error = saved.error()});
      reach_libvirt_again();
      return;
    }
    answered_ = Clock::now();
    barren_ = 0;
    tell_({.kind = WatchEvent::Kind::kSaved, .saved = &*saved, .checkpoint = saved->manifest.id});
    thin();
  }

  TimePoint next_beat(TimePoint beat) {
    const TimePoint now = Clock::now();
    u64 skipped = 0;
    for (beat += options_.every; beat <= now; beat += options_.every) ++skipped;
    if (skipped > 0) tell_({.kind = WatchEvent::Kind::kSkipped, .skipped = skipped});
    return beat;
  }

  /// The checkpoints that a watch has taken of this VM, oldest first.
  std::vector<std::string> periodic() const {
    std::vector<std::string> ids;
    const auto listing = store_.list();
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

  Result<void> bring_back() {
    if (!has_ended(process_.get())) {
      ::syscall(SYS_pidfd_send_signal, process_.get(), SIGKILL, nullptr, 0);
      if (!has_ended(process_.get(), kDeathPatience))
        return make_error(ErrorKind::kTimeout, "process {} does not end", vm_.process.pid);
    }
    std::vector<std::string> ids = periodic();
    // The newest one whose guest lived on for another checkpoint; what was saved before may be what kills it.
    ids.resize(ids.size() - std::min(barren_, ids.empty() ? 0 : ids.size() - 1));
    ++barren_;
    restarted_ = Clock::now();
    std::optional<Error> last;
    for (auto id = ids.rbegin(); id != ids.rend(); ++id) {
      const auto restored = bring_back_from(*id);
      if (!restored.ok()) {
        last = restored.error();
        tell_({.kind = WatchEvent::Kind::kUnusable, .error = *last, .checkpoint = *id});
        continue;
      }
      tell_({.kind = WatchEvent::Kind::kRestarted, .restored = &*restored, .checkpoint = *id});
      VMSIEVE_ASSIGN(vm_, resolve_vm(restored->vm.empty() ? restored->qmp_path : restored->vm));
      VMSIEVE_ASSIGN(process_, open_process(restored->pid));
      lock_.reset();
      VMSIEVE_ASSIGN(lock_, VmLock::take_for_watch(restored->pid));
      answered_ = Clock::now();
      return {};
    }
    if (last) return last->with_context("the VM cannot be brought back");
    return Error(ErrorKind::kNotFound, "the VM cannot be brought back: no checkpoint of it was taken");
  }

  /// The guest runs at once; until all of its memory is there, no checkpoint can be taken of it.
  Result<RestoreReport> bring_back_from(const std::string& id) {
    VMSIEVE_ASSIGN(const auto reader, CheckpointReader::open(store_, id));
    if (belongs_to_libvirt(reader->manifest(), options_.restore)) return bring_domain_back(*reader);
    VMSIEVE_ASSIGN(const Restored restored, restore(store_, id, options_.restore, progress_));
    if (restored.server != nullptr) VMSIEVE_TRY(restored.server->wait(progress_));
    return restored.report;
  }

  Result<RestoreReport> bring_domain_back(const CheckpointReader& reader) {
    // libvirt may not have seen yet that the QEMU before has ended.
    for (const TimePoint end = Clock::now() + kDeathPatience;;) {
      auto restored = restore_in_libvirt(reader, options_.restore, progress_);
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
