// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/save.h"

#include <cstdio>

#include <CLI/CLI.hpp>

#include "cli.h"
#include "saving.h"

namespace vmsieve::cli {

namespace {

struct Options {
  std::string vm;
  bool live = false;
  bool paused = false;
  bool full = false;
  bool incremental = false;
  SavingOptions saving;
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
  for (const SavedDisk& disk : saved.disks.disks) {
    if (!disk.overlay.empty())
      fmt::print("disk {} is as it was at the checkpoint; the VM writes to {} now\n", disk.image,
                 disk.overlay);
    if (!disk.snapshot.empty()) fmt::print("disk {} has the snapshot {}\n", disk.image, disk.snapshot);
    if (saved.disks.way == DiskWay::kCopy) fmt::print("disk {} is copied into the store\n", disk.image);
  }
  if (m.introspection.used) {
    fmt::print("kernel Linux {}\n", m.introspection.kernel);
    if (!m.introspection.reason.empty()) fmt::print("saved in full in part: {}\n", m.introspection.reason);
  } else {
    fmt::print("saved in full: {}\n", m.introspection.reason);
  }
}

int save(const Options& options, const Common& common) {
  auto saving = save_options(options.saving);
  if (!saving) return report(saving.error(), common);
  saving->mode = options.live ? SaveMode::kLive : options.paused ? SaveMode::kPaused : SaveMode::kAny;
  saving->incremental = options.incremental;
  const auto address = resolve_vm(options.vm);
  if (!address) return report(address.error(), common);
  const auto store = open_store(common, true);
  if (!store) return report(store.error(), common);
  const auto saved = vmsieve::save(*address, **store, *saving, progress_bar(common));
  if (!saved) return report(saved.error(), common);
  end_progress(common);
  for (const std::string& warning : saved->warnings) warn(warning, common);
  if (common.json) {
    print_json(save_json(*saved, **store));
  } else {
    print_report(*saved, **store);
  }
  return kExitOk;
}

}  // namespace

void add_save(CLI::App& app, int& status) {
  auto common = std::make_shared<Common>();
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("save", "take a checkpoint of a running VM");
  command->add_option("VM", options->vm, "QMP socket, pid:N, -name, or libvirt:NAME")->required();
  CLI::Option* const live =
      command->add_flag("--live", options->live, "fail rather than stop the guest while its memory is read");
  CLI::Option* const paused =
      command->add_flag("--paused", options->paused, "stop the guest until its memory is read out")
          ->excludes(live);
  CLI::Option* const incremental =
      command
          ->add_flag(
              "--incremental", options->incremental,
              "only what was written since the VM's last checkpoint; its writes are tracked from now on")
          ->excludes(paused);
  command->add_flag("--full", options->full, "a checkpoint that needs no other (default)")
      ->excludes(incremental);
  add_saving_options(*command, options->saving);
  add_common(*command, common, true);
  command->callback([common, options, &status] { status = save(*options, *common); });
}

}  // namespace vmsieve::cli
