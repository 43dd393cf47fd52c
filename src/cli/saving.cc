// SPDX-License-Identifier: Apache-2.0
#include "saving.h"

#include <algorithm>
#include <chrono>

#include <CLI/CLI.hpp>

namespace vmsieve::cli {

void add_saving_options(CLI::App& command, SavingOptions& options) {
  command
      .add_option(
          "--longest-wait", options.longest_wait_s,
          "seconds that a save may make a write of the guest, or the guest itself, wait for the store")
      ->capture_default_str()
      ->check(CLI::Range(1U, 3600U));
  command.add_option("--compress", options.compress, "none, lz4, zstd or zstd:LEVEL (1 to 19)")
      ->capture_default_str();
  command.add_flag("--no-introspection", options.no_introspection, "save every page, free or not");
  command
      .add_option("--omit", options.omit,
                  "kinds of free pages to leave out beside the buddy allocator's: per-cpu (lists), hugetlb "
                  "(free pages of pools), offline (balloon, unplugged), none")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember({"per-cpu", "hugetlb", "offline", "none"}));
  command.add_option("--threads", options.threads, "threads (default: one for each core)")
      ->check(CLI::Range(1U, 256U));
  command.add_option("--buffer-mib", options.buffer_mib, "MiB of guest pages held in memory at most")
      ->capture_default_str()
      ->check(CLI::Range(1U, 1048576U));
}

Result<SaveOptions> save_options(const SavingOptions& options) {
  SaveOptions saving;
  VMSIEVE_ASSIGN(saving.compression, Compression::parse(options.compress));
  const auto omitted = [&](std::string_view kind) { return std::ranges::count(options.omit, kind) != 0; };
  saving.introspection = !options.no_introspection;
  saving.kinds = {
      .per_cpu = omitted("per-cpu"), .hugetlb = omitted("hugetlb"), .offline = omitted("offline")};
  saving.threads = options.threads;
  saving.buffer_bytes = options.buffer_mib * kMiB;
  saving.longest_wait = std::chrono::seconds(options.longest_wait_s);
  return saving;
}

Json save_json(const SaveReport& saved, const Store& store) {
  Json json = manifest_json(saved.manifest);
  json["store"] = store.name();
  json["pause"] = {{"stop_ms", saved.pause.stop_ms},     {"classify_ms", saved.pause.classify_ms},
                   {"device_ms", saved.pause.device_ms}, {"plan_ms", saved.pause.plan_ms},
                   {"read_ms", saved.pause.read_ms},     {"freeze_ms", saved.pause.freeze_ms},
                   {"resume_ms", saved.pause.resume_ms}};
  if (const TrackedReport& tracked = saved.tracked; tracked.noted || !tracked.reason.empty()) {
    const TrackedFigures& figures = tracked.figures;
    json["tracking"] = {{"tracked", tracked.tracked},
                        {"incremental", tracked.incremental},
                        {"reason", tracked.reason},
                        {"prepare_ms", saved.live.prepare_ms},
                        {"ahead_ms", figures.before_ms},
                        {"rounds", figures.rounds},
                        {"early_pause_ms", tracked.early_pause_ms},
                        {"scan_ms", figures.scan_ms},
                        {"copied_bytes", figures.copied_pages * kPageSize},
                        {"copied_in_pause_bytes", figures.frozen_pages * kPageSize},
                        {"sections_reused", saved.live.sections_reused}};
  }
  if (saved.manifest.mode == "live" && !saved.tracked.noted) {
    const LiveFigures& figures = saved.live.figures;
    json["live"] = {{"prepare_ms", saved.live.prepare_ms},
                    {"copy_ms", saved.live.copy_ms},
                    {"rewritten_bytes", figures.rewritten_bytes},
                    {"sections_reused", saved.live.sections_reused},
                    {"waits", figures.waits},
                    {"longest_wait_ms", figures.longest_wait_ms}};
  }
  json["warnings"] = saved.warnings;
  return json;
}

void add_starting_options(CLI::App& command, StartingOptions& options) {
  command.add_flag("--disks-as-they-are", options.disks_as_they_are,
                   "the VM's writable disks hold what they held at the checkpoint, or may differ");
  command.add_option("--qemu", options.qemu, "QEMU to start (default: the recorded one)");
  // One value each: what follows may be the checkpoint, or `--`.
  command
      .add_option(
          "--set", options.set,
          "OPTION=VALUE: replaces an option of the recorded command line, for example serial=file:OUT")
      ->allow_extra_args(false);
}

void set_starting_options(const StartingOptions& options, RestoreOptions& restoring) {
  if (!options.qemu.empty()) restoring.qemu_executable = options.qemu;
  restoring.set = options.set;
  restoring.disks_as_they_are = options.disks_as_they_are;
}

}  // namespace vmsieve::cli
