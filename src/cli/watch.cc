// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/watch/watch.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstdio>

#include <CLI/CLI.hpp>

#include "cli.h"
#include "saving.h"
#include "vmsieve/base/clock.h"

namespace vmsieve::cli {

namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string vm;
  std::string every = "10s";
  u64 keep = 0;
  bool restart = false;
  unsigned dead_after_s = 60;
  SavingOptions saving;
  StartingOptions starting;
};

/// Ctrl-C and SIGTERM end the watch between two saves, not in the middle of one.
class StopSignals {
 public:
  StopSignals() {
    sigset_t stop;
    ::sigemptyset(&stop);
    ::sigaddset(&stop, SIGINT);
    ::sigaddset(&stop, SIGTERM);
    ::sigprocmask(SIG_BLOCK, &stop, nullptr);
    fd_ = UniqueFd{::signalfd(-1, &stop, SFD_CLOEXEC | SFD_NONBLOCK)};
  }

  bool wait(int process, Clock::time_point deadline) const {
    for (;;) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
      pollfd polls[] = {{fd_.get(), POLLIN, 0}, {process, POLLIN, 0}};
      const int ready = ::poll(polls, 2, static_cast<int>(std::clamp<long>(left, 0, 1 << 30)));
      if (ready < 0 && errno == EINTR) continue;
      return ready > 0 && polls[0].revents != 0;
    }
  }

 private:
  UniqueFd fd_;
};

void print_line(const Json& json) {
  std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
}

void tell_json(const WatchEvent& event, const Store& store) {
  Json json;
  switch (event.kind) {
    case WatchEvent::Kind::kSaved:
      json = {{"event", "saved"}};
      json.update(save_json(*event.saved, store));
      break;
    case WatchEvent::Kind::kFailed: json = {{"event", "failed"}}; break;
    case WatchEvent::Kind::kSkipped: json = {{"event", "skipped"}, {"beats", event.skipped}}; break;
    case WatchEvent::Kind::kRemoved: json = {{"event", "removed"}}; break;
    case WatchEvent::Kind::kDied: json = {{"event", "died"}}; break;
    case WatchEvent::Kind::kUnusable: json = {{"event", "unusable"}}; break;
    case WatchEvent::Kind::kWaiting: json = {{"event", "waiting"}}; break;
    case WatchEvent::Kind::kRestarted:
      json = {{"event", "restarted"},
              {"pid", event.restored->pid},
              {"qmp", event.restored->qmp_path},
              {"ready_ms", event.restored->ready_ms}};
      if (!event.restored->abandoned.empty()) json["abandoned"] = event.restored->abandoned;
      break;
  }
  json["time"] = utc_now();
  if (event.again_in.count() > 0) json["again_in_ms"] = event.again_in.count();
  if (!event.checkpoint.empty()) json["checkpoint"] = event.checkpoint;
  if (event.error) {
    json["kind"] = to_string(event.error->kind());
    json["message"] = event.error->message();
  }
  print_line(json);
}

void tell_text(const WatchEvent& event, const WatchOptions& options, const Common& common) {
  const std::string now = utc_now();
  const auto warn_now = [&](const std::string& words) { warn(fmt::format("{} {}", now, words), common); };
  const std::string again_in = human_ms(static_cast<double>(event.again_in.count()));
  switch (event.kind) {
    case WatchEvent::Kind::kSaved: {
      const Manifest& m = event.saved->manifest;
      fmt::print("{} {}: {}, guest stopped {}, {} in all, stored {}\n", m.created, m.id,
                 event.saved->tracked.incremental ? "incremental" : "full", human_ms(m.pause_ms),
                 human_ms(m.total_ms), human_bytes(m.stored_bytes));
      if (!event.saved->tracked.reason.empty()) fmt::print("  {}\n", event.saved->tracked.reason);
      break;
    }
    case WatchEvent::Kind::kFailed:
      warn_now(fmt::format("no checkpoint at this beat: {}{}", event.error->message(),
                           event.again_in > options.every ? ": tried again in " + again_in : ""));
      break;
    case WatchEvent::Kind::kSkipped:
      warn_now(fmt::format("skipped {} beat{}: the save took longer", event.skipped,
                           event.skipped == 1 ? "" : "s"));
      break;
    case WatchEvent::Kind::kRemoved: fmt::print("{} removed {}\n", now, event.checkpoint); break;
    case WatchEvent::Kind::kDied:
      if (options.restart) warn_now(event.error->message());  // else it is the end, and is reported
      break;
    case WatchEvent::Kind::kWaiting:
      warn_now(fmt::format("the VM is not brought back before {}: {}", again_in, event.error->message()));
      break;
    case WatchEvent::Kind::kUnusable:
      warn_now(fmt::format("checkpoint {} cannot be used: {}", event.checkpoint, event.error->message()));
      break;
    case WatchEvent::Kind::kRestarted:
      fmt::print("{} checkpoint {} runs as process {} after {}, {}\n", now, event.checkpoint,
                 event.restored->pid, human_ms(event.restored->ready_ms),
                 event.restored->vm.empty() ? "monitor " + event.restored->qmp_path : event.restored->vm);
      for (const std::string& path : event.restored->abandoned)
        fmt::print("  {}, which the VM wrote to after the checkpoint, goes with the checkpoint\n", path);
      break;
  }
}

int watch(const Options& options, const Common& common) {
  auto saving = save_options(options.saving, options.restart);
  if (!saving) return report(saving.error(), common);
  const auto every = parse_duration(options.every);
  if (!every) return report(every.error(), common);
  const auto address = resolve_vm(options.vm);
  if (!address) {
    const bool is_dead = options.restart && address.error().kind() == ErrorKind::kNotFound;
    return report(
        is_dead ? make_error(ErrorKind::kNotFound,
                             "{}: a VM that has died before is brought back by `vmsieve restore {}@latest`",
                             address.error().message(), options.vm)
                : address.error(),
        common);
  }
  const auto store = open_store(common, true);
  if (!store) return report(store.error(), common);
  WatchOptions watching{.every = *every,
                        .keep = options.keep,
                        .restart = options.restart,
                        .dead_after = std::chrono::seconds(options.dead_after_s),
                        .save = *saving,
                        .restore = {}};
  StartingOptions starting = options.starting;
  starting.disk_folder = options.saving.disk_folder;
  if (const auto set = set_starting_options(starting, watching.restore); !set)
    return report(set.error(), common);
  watching.restore.disks.instead = true;
  watching.restore.disks.or_beside = true;  // from an older one, when the newest cannot be used
  const StopSignals signals;
  const auto tell = [&](const WatchEvent& event) {
    end_progress(common);
    if (common.json) {
      tell_json(event, **store);
    } else {
      tell_text(event, watching, common);
    }
    std::fflush(stdout);
  };
  // A watch that nobody listens to ends; main() says so.
  const auto wait = [&](int process, Clock::time_point deadline) {
    end_progress(common);
    return std::ferror(stdout) != 0 || signals.wait(process, deadline);
  };
  const auto watched = vmsieve::watch(*address, **store, watching, wait, tell, progress_bar(common));
  if (!watched) return report(watched.error(), common);
  return kExitOk;
}

}  // namespace

void add_watch(CLI::App& app, int& status) {
  auto common = std::make_shared<Common>();
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("watch", "take an incremental checkpoint of a VM at every beat");
  command->add_option("VM", options->vm, "QMP socket, pid:N, -name, or libvirt:NAME")->required();
  command
      ->add_option("--every", options->every,
                   "a beat: 500ms, 10s, 5m, 1h; one that comes too early is skipped")
      ->capture_default_str();
  command
      ->add_option("--keep", options->keep,
                   "how many checkpoints that watches took of this VM stay, the newest ones; 0: all; those "
                   "of `save` always stay")
      ->capture_default_str();
  command->add_flag(
      "--restart", options->restart,
      "when the VM's QEMU ends, for whatever reason, or does not answer, bring it back from the newest good "
      "checkpoint: to shut the VM down, end the watch first. Files that its command line writes, a serial "
      "log among them, begin anew");
  command
      ->add_option("--dead-after", options->dead_after_s,
                   "seconds without an answer of its monitor until a VM counts as dead and is killed")
      ->capture_default_str()
      ->check(CLI::Range(1U, 86400U));
  add_saving_options(*command, options->saving);
  add_starting_options(*command, options->starting);
  add_common(*command, common, true);
  command->callback([common, options, &status] { status = watch(*options, *common); });
}

}  // namespace vmsieve::cli
