// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/save.h"

#include <algorithm>
#include <cstdio>

#include <CLI/CLI.hpp>

#include "cli.h"

namespace vmsieve::cli {

namespace {

struct Options {
  std::string vm;
  std::string compress = "zstd";
  bool live = false;
  bool paused = false;
  unsigned longest_wait_s = 30;
  bool full = false;
  bool incremental = false;
  bool no_introspection = false;
  std::vector<std::string> omit = {"per-cpu", "hugetlb"};
  unsigned threads = 0;
  u64 buffer_mib = 256;
};

void print_report(const SaveReport& saved, const Store& store) {
  const Manifest& m = saved.manifest;
  const auto pages = [](u64 count) { return human_bytes(count * kPageSize); };
  fmt::print("checkpoint {} of {} in {}\n", m.id,
             m.vm_name.empty() ? "pid " + std::to_string(m.vm_pid) : m.vm_name, store.name());
  if (m.was_running) {
    fmt::print("guest stopped {} of {} in all\n", human_ms(m.pause_ms), human_ms(m.total_ms));
  } else {
    fmt::print("guest stood still before, and does; saved in {}\n", human_ms(m.total_ms));
  }
  if (saved.live.figures.waits > 0) {
    fmt::print("{} writes of the guest waited to be copied, {} at most\n", saved.live.figures.waits,
               human_ms(saved.live.figures.longest_wait_ms));
  }
  fmt::print("stored {} of {} of guest memory: free {}, zero {}, {}saved {}\n", human_bytes(m.stored_bytes),
             human_bytes(m.guest_bytes), pages(m.pages.free), pages(m.pages.zero),
             m.pages.fill == 0 ? "" : fmt::format("one repeated byte {}, ", pages(m.pages.fill)),
             pages(m.pages.saved));
  if (saved.tracked.incremental && saved.tracked.noted) {
    fmt::print("incremental, behind {}: {} copied that was written since\n", m.parent,
               pages(saved.tracked.figures.copied_pages));
  } else if (saved.tracked.incremental) {
    fmt::print("incremental, behind {}, all pages compared: {}\n", m.parent, saved.tracked.reason);
  } else if (!saved.tracked.reason.empty()) {
    fmt::print("a full checkpoint: {}\n", saved.tracked.reason);
  }
  if (m.introspection.used) {
    fmt::print("kernel Linux {}\n", m.introspection.kernel);
    if (!m.introspection.reason.empty()) fmt::print("saved in full in part: {}\n", m.introspection.reason);
  } else {
    fmt::print("saved in full: {}\n", m.introspection.reason);
  }
}

int save(const Options& options, const Common& common) {
  const auto compression = Compression::parse(options.compress);
  if (!compression) return report(compression.error(), common);
  const auto address = resolve_vm(options.vm);
  if (!address) return report(address.error(), common);
  const auto store = open_store(common, true);
  if (!store) return report(store.error(), common);
  const auto omitted = [&](std::string_view kind) { return std::ranges::count(options.omit, kind) != 0; };
  const SaveMode mode = options.live ? SaveMode::kLive : options.paused ? SaveMode::kPaused : SaveMode::kAny;
  const auto saved = vmsieve::save(
      *address, **store,
      {.mode = mode,
       .incremental = options.incremental,
       .compression = *compression,
       .introspection = !options.no_introspection,
       .kinds = {.per_cpu = omitted("per-cpu"), .hugetlb = omitted("hugetlb"), .offline = omitted("offline")},
       .threads = options.threads,
       .buffer_bytes = options.buffer_mib * kMiB,
       .longest_wait = std::chrono::seconds(options.longest_wait_s)},
      progress_bar(common));
  if (!saved) return report(saved.error(), common);
  end_progress(common);
  for (const std::string& warning : saved->warnings) warn(warning, common);
  if (!common.json) {
    print_report(*saved, **store);
    return kExitOk;
  }
  Json json = manifest_json(saved->manifest);
  json["store"] = (*store)->name();
  json["pause"] = {{"stop_ms", saved->pause.stop_ms},     {"classify_ms", saved->pause.classify_ms},
                   {"device_ms", saved->pause.device_ms}, {"plan_ms", saved->pause.plan_ms},
                   {"read_ms", saved->pause.read_ms},     {"freeze_ms", saved->pause.freeze_ms},
                   {"resume_ms", saved->pause.resume_ms}};
  if (const TrackedReport& tracked = saved->tracked; tracked.noted || !tracked.reason.empty()) {
    const TrackedFigures& figures = tracked.figures;
    json["tracking"] = {{"tracked", tracked.tracked},
                        {"incremental", tracked.incremental},
                        {"reason", tracked.reason},
                        {"prepare_ms", saved->live.prepare_ms},
                        {"ahead_ms", figures.before_ms},
                        {"rounds", figures.rounds},
                        {"scan_ms", figures.scan_ms},
                        {"copied_bytes", figures.copied_pages * kPageSize},
                        {"copied_in_pause_bytes", figures.frozen_pages * kPageSize},
                        {"sections_reused", saved->live.sections_reused}};
  }
  if (saved->manifest.mode == "live" && !saved->tracked.noted) {
    const LiveFigures& figures = saved->live.figures;
    json["live"] = {{"prepare_ms", saved->live.prepare_ms},
                    {"copy_ms", saved->live.copy_ms},
                    {"rewritten_bytes", figures.rewritten_bytes},
                    {"sections_reused", saved->live.sections_reused},
                    {"waits", figures.waits},
                    {"longest_wait_ms", figures.longest_wait_ms}};
  }
  json["warnings"] = saved->warnings;
  print_json(json);
  return kExitOk;
}

}  // namespace

void add_save(CLI::App& app, int& status) {
  auto common = std::make_shared<Common>();
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("save", "take a checkpoint of a running VM");
  command->add_option("VM", options->vm, "QMP socket, pid:N, or -name")->required();
  CLI::Option* const live =
      command->add_flag("--live", options->live, "fail rather than stop the guest while its memory is read");
  CLI::Option* const paused =
      command->add_flag("--paused", options->paused, "stop the guest until its memory is read out")
          ->excludes(live);
  command
      ->add_option("--longest-wait", options->longest_wait_s,
                   "seconds that a write of the guest may wait for a live save, which is then given up")
      ->capture_default_str()
      ->check(CLI::Range(1U, 3600U));
  command
      ->add_flag("--incremental", options->incremental,
                 "only what was written since the VM's last checkpoint; its writes are tracked from now on")
      ->excludes(paused);
  command->add_flag("--full", options->full, "a checkpoint that needs no other (default)")
      ->excludes("--incremental");
  command->add_option("--compress", options->compress, "none, lz4, zstd or zstd:LEVEL (1 to 19)")
      ->capture_default_str();
  command->add_flag("--no-introspection", options->no_introspection, "save every page, free or not");
  command
      ->add_option("--omit", options->omit,
                   "kinds of free pages to leave out beside the buddy allocator's: per-cpu (lists), hugetlb "
                   "(free pages of pools), offline (balloon, unplugged), none")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember({"per-cpu", "hugetlb", "offline", "none"}));
  command->add_option("--threads", options->threads, "threads (default: one for each core)")
      ->check(CLI::Range(1U, 256U));
  command->add_option("--buffer-mib", options->buffer_mib, "MiB of guest pages held in memory at most")
      ->capture_default_str()
      ->check(CLI::Range(1U, 1048576U));
  add_common(*command, common, true);
  command->callback([common, options, &status] { status = save(*options, *common); });
}

}  // namespace vmsieve::cli
