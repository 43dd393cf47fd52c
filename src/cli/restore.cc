// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/restore.h"

#include <unistd.h>
#include <algorithm>
#include <cstdio>

#include <CLI/CLI.hpp>

#include "background.h"
#include "cli.h"
#include "saving.h"
#include "vmsieve/formats/libvirt_image.h"
#include "vmsieve/restore/launch.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve::cli {

namespace {

struct Options {
  std::string checkpoint;
  bool lazy = false;
  bool eager = false;
  bool wait = false;
  bool foreground = false;
  bool stopped = false;
  unsigned clones = 0;
  StartingOptions starting;
  std::string qmp;
  std::string omitted_fill;
  RestoreOptions restore;
};

void add_disks(Json& json, const RestoreReport& restored) {
  if (!restored.disks.empty()) json["disks"] = restored.disks;
  if (!restored.abandoned.empty()) json["abandoned"] = restored.abandoned;
}

void print_disks(const RestoreReport& restored) {
  for (const std::string& disk : restored.disks) fmt::print("writes to {}\n", disk);
  for (const std::string& disk : restored.abandoned)
    fmt::print("{}, which the VM wrote to after the checkpoint, goes with the checkpoint\n", disk);
}

Json restored_json(const std::string& id, const RestoreReport& restored) {
  Json json{{"checkpoint", id},
            {"mode", restored.lazy ? "lazy" : "eager"},
            {"pid", restored.pid},
            {"qmp", restored.qmp_path},
            {"ready_ms", restored.ready_ms},
            {"start_ms", restored.start_ms},
            {"running", restored.running},
            {"log", restored.log_path},
            {"qemu", restored.qemu_version},
            {"machine", restored.machine_type}};
  if (restored.lazy) json["filled_by"] = ::getpid();
  if (!restored.eager_reason.empty()) json["eager_reason"] = restored.eager_reason;
  add_disks(json, restored);
  if (!restored.warnings.empty()) json["warnings"] = restored.warnings;
  return json;
}

Json fill_json(const FillFigures& fill) {
  return {{"ms", fill.fill_ms},
          {"bytes", fill.pages * kPageSize},
          {"first_jobs", fill.first_jobs},
          {"faults", fill.faults},
          {"longest_fault_ms", fill.longest_fault_ms}};
}

void warn_all(const RestoreReport& restored, const Common& common) {
  for (const std::string& warning : restored.warnings) warn(warning, common);
}

void print_text(const std::string& id, const RestoreReport& restored) {
  fmt::print("checkpoint {} {} as process {} after {}\nmonitor {}\noutput of QEMU in {}\n", id,
             restored.running ? "runs" : "stands stopped", restored.pid, human_ms(restored.ready_ms),
             restored.qmp_path, restored.log_path);
  print_disks(restored);
}

/// After the fill. That it cannot be kept matters only to who has asked for it.
void keep_working_set(Store& store, const std::string& id, const Restored& restored, bool asked,
                      const Common& common) {
  if (!restored.records) return;
  const auto kept = vmsieve::keep_working_set(store, id, *restored.server);
  if (!kept && asked) warn("what the guest wanted first cannot be noted: " + kept.error().message(), common);
}

/// As long as QEMU lives; that it did not end well is told.
int stay_with(pid_t pid, const Common& common) {
  const auto ended = wait_for_exit(pid);
  if (!ended) return report(ended.error(), common);
  if (*ended == 0) return kExitOk;
  return report(make_error(ErrorKind::kVanished, "process {} ended with status {}", pid, *ended), common);
}

/// Until the guest's memory is complete, and with --foreground until QEMU ends.
int restore_to_the_end(Store& store, const std::string& id, const Options& options, const Common& common) {
  const auto restored = restore(store, id, options.restore, progress_bar(common));
  if (!restored) return report(restored.error(), common);
  end_progress(common);
  warn_all(restored->report, common);
  Json json = restored_json(id, restored->report);
  const bool tell_early = !options.wait;
  if (!common.json) print_text(id, restored->report);
  if (common.json && tell_early) print_json(json);
  std::fflush(stdout);
  if (restored->server != nullptr) {
    const auto filled = restored->server->wait(progress_bar(common));
    end_progress(common);
    if (!filled) return report(filled.error(), common);
    keep_working_set(store, id, *restored, options.restore.record, common);
    const FillFigures figures = restored->server->figures();
    json["fill"] = fill_json(figures);
    if (!common.json)
      fmt::print("all of its memory is there after {}: {}, {} pages waited for, {} at most\n",
                 human_ms(figures.fill_ms), human_bytes(figures.pages * kPageSize), figures.faults,
                 human_ms(figures.longest_fault_ms));
  }
  if (common.json && !tell_early) print_json(json);
  std::fflush(stdout);
  return options.foreground ? stay_with(restored->report.pid, common) : kExitOk;
}

/// `ready` is called when the guest is back; its memory may still be to come.
int restore_and_serve(Store& store, const std::string& id, const Options& options, const Common& common,
                      const std::function<void(int)>& ready) {
  const auto restored = restore(store, id, options.restore, progress_bar(common));
  if (!restored) return report(restored.error(), common);
  end_progress(common);
  warn_all(restored->report, common);
  if (common.json) {
    print_json(restored_json(id, restored->report));
  } else {
    print_text(id, restored->report);
    if (restored->server != nullptr)
      fmt::print("process {} brings its memory in and ends when all is there\n", ::getpid());
  }
  ready(kExitOk);
  if (restored->server == nullptr) return kExitOk;
  const auto filled = restored->server->wait();
  if (!filled) return exit_code(filled.error().kind());
  keep_working_set(store, id, *restored, false, common);
  return kExitOk;
}

/// What is the same in all clones, for people.
constexpr const char* kSameInClones =
    "the clones have the same MAC addresses, UUID, machine-id and host name: keep their networks apart, or "
    "change what must differ inside";

int restore_all_clones(Store& store, const std::string& id, const Options& options, const Common& common) {
  const auto clones = restore_clones(store, id, options.restore, options.clones, progress_bar(common));
  if (!clones) return report(clones.error(), common);
  end_progress(common);
  Json json{{"checkpoint", id}, {"clones", Json::array()}};
  for (const RestoreReport& clone : *clones) {
    warn_all(clone, common);
    if (common.json) {
      json["clones"].push_back(restored_json(id, clone));
    } else {
      print_text(id, clone);
    }
  }
  if (common.json) print_json(json);
  std::fflush(stdout);
  warn(kSameInClones, common);
  int status = kExitOk;
  if (options.foreground) {
    for (const RestoreReport& clone : *clones) status = std::max(status, stay_with(clone.pid, common));
  }
  return status;
}

int restore_domain(Store& store, const CheckpointReader& reader, const RestoreOptions& options,
                   const Common& common) {
  const auto restored = restore_in_libvirt(store, reader, options, progress_bar(common));
  if (!restored) return report(restored.error(), common);
  end_progress(common);
  warn_all(*restored, common);
  const std::string& id = reader.manifest().id;
  if (common.json) {
    Json json{{"checkpoint", id},
              {"mode", "eager"},
              {"pid", restored->pid},
              {"qmp", ""},
              {"ready_ms", restored->ready_ms},
              {"running", restored->running},
              {"vm", restored->vm}};
    add_disks(json, *restored);
    print_json(json);
  } else {
    fmt::print("checkpoint {} {} as {} (process {}) after {}\n", id,
               restored->running ? "runs" : "stands stopped", restored->vm, restored->pid,
               human_ms(restored->ready_ms));
    print_disks(*restored);
  }
  return kExitOk;
}

int restore_checkpoint(Options& options, const Common& common) {
  const auto store = open_store(common, false);
  if (!store) return report(store.error(), common);
  const auto id = (*store)->resolve(options.checkpoint);
  if (!id) return report(id.error(), common);
  RestoreOptions& restoring = options.restore;
  if (const auto set = set_starting_options(options.starting, restoring); !set)
    return report(set.error(), common);
  if (options.lazy) restoring.mode = RestoreMode::kLazy;
  if (options.eager) restoring.mode = RestoreMode::kEager;
  if (!options.qmp.empty()) restoring.qmp_path = options.qmp;
  if (options.stopped) restoring.after = AfterRestore::kStopped;
  if (!options.omitted_fill.empty()) {
    char* end = nullptr;
    const unsigned long fill = std::strtoul(options.omitted_fill.c_str(), &end, 0);
    if (*end != '\0' || fill > 0xff) {
      return report(make_error(ErrorKind::kUsage, "--omitted-fill {} is no byte", options.omitted_fill),
                    common);
    }
    restoring.omitted_fill = static_cast<u8>(fill);
  }
  const auto reader = CheckpointReader::open(**store, *id);
  if (!reader) return report(reader.error(), common);
  if (belongs_to_libvirt((*reader)->manifest(), restoring) && options.clones == 0 && !options.foreground)
    return restore_domain(**store, **reader, restoring, common);
  if (options.clones > 0) return restore_all_clones(**store, *id, options, common);
  if (options.foreground || options.wait || options.eager)
    return restore_to_the_end(**store, *id, options, common);
  return run_in_background(
      [&](const std::function<void(int)>& ready) {
        return restore_and_serve(**store, *id, options, common, ready);
      },
      common);
}

}  // namespace

void add_restore(CLI::App& app, int& status) {
  auto common = std::make_shared<Common>();
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("restore", "start a QEMU from a checkpoint; it runs in the background");
  command->add_option("CHECKPOINT", options->checkpoint, "id, unique prefix, or VMNAME@latest")->required();
  CLI::Option* const lazy = command->add_flag(
      "--lazy", options->lazy, "run the guest before its memory is there, or fail (default: where possible)");
  command->add_flag("--eager", options->eager, "check and fill all memory before the guest runs")
      ->excludes(lazy);
  command->add_flag("--wait", options->wait,
                    "wait until all memory is there (to end this command before that ends the VM)");
  command
      ->add_flag("--record", options->restore.record,
                 "note anew what the guest wants first: the next restores bring that in before all else (the "
                 "first lazy restore of a checkpoint does it by itself)")
      ->excludes("--eager");
  command->add_flag("--foreground", options->foreground,
                    "wait until the new QEMU ends; exit status 9 if that was not by itself or by `quit`");
  command
      ->add_option(
          "--clone", options->clones,
          "bring up so many guests that share memory; {n} in --set, --qmp and ARGUMENTS is their number")
      ->excludes(lazy)
      ->check(CLI::Range(1U, 1000U));
  command->add_flag("--stopped", options->stopped, "leave the guest stopped");
  add_starting_options(*command, options->starting);
  command
      ->add_flag("--instead", options->restore.disks.instead,
                 "the guest takes the place of the VM that was saved, which has ended, at its newest "
                 "checkpoint: what that one wrote to "
                 "its disks after the checkpoint is removed with the checkpoint, and the disks are then put "
                 "back together")
      ->excludes("--clone")
      ->excludes("--disk-temporary")
      ->excludes("--disks-as-they-are");
  command->add_option(
      "--qmp", options->qmp,
      "where the new monitor listens (default: where the old one did, or in /run/vmsieve while "
      "somebody listens there)");
  command
      ->add_option("--threads", options->restore.threads,
                   "threads that decode, and bring memory in (default: by the cores)")
      ->check(CLI::Range(1U, 256U));
  command->add_option("--omitted-fill", options->omitted_fill,
                      "for tests: omitted pages read as this byte instead of zero");
  command->add_option("ARGUMENTS", options->restore.extra_arguments,
                      "behind `--`: further arguments for QEMU");
  add_common(*command, common, true);
  command->callback([common, options, &status] { status = restore_checkpoint(*options, *common); });
}

}  // namespace vmsieve::cli
