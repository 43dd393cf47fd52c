// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/restore.h"

#include <cstdio>

#include <CLI/CLI.hpp>

#include "cli.h"
#include "saving.h"
#include "vmsieve/restore/launch.h"

namespace vmsieve::cli {

namespace {

struct Options {
  std::string checkpoint;
  bool eager = false;
  bool foreground = false;
  bool stopped = false;
  StartingOptions starting;
  std::string qmp;
  std::string omitted_fill;
  RestoreOptions restore;
};

int print_report(const std::string& id, const RestoreReport& restored, const Common& common) {
  if (common.json) {
    print_json({{"checkpoint", id},
                {"pid", restored.pid},
                {"qmp", restored.qmp_path},
                {"ready_ms", restored.ready_ms},
                {"running", restored.running},
                {"log", restored.log_path},
                {"qemu", restored.qemu_version},
                {"machine", restored.machine_type}});
  } else {
    fmt::print("checkpoint {} {} as process {} after {}\nmonitor {}\noutput of QEMU in {}\n", id,
               restored.running ? "runs" : "stands stopped", restored.pid, human_ms(restored.ready_ms),
               restored.qmp_path, restored.log_path);
  }
  std::fflush(stdout);
  return kExitOk;
}

int restore_checkpoint(Options& options, const Common& common) {
  const auto store = open_store(common, false);
  if (!store) return report(store.error(), common);
  const auto id = (*store)->resolve(options.checkpoint);
  if (!id) return report(id.error(), common);
  RestoreOptions& restoring = options.restore;
  set_starting_options(options.starting, restoring);
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
  const auto restored = restore(**store, *id, restoring, progress_bar(common));
  if (!restored) return report(restored.error(), common);
  end_progress(common);
  print_report(*id, *restored, common);
  if (options.foreground) {
    if (const auto ended = wait_for_exit(restored->pid); !ended) return report(ended.error(), common);
  }
  return kExitOk;
}

}  // namespace

void add_restore(CLI::App& app, int& status) {
  auto common = std::make_shared<Common>();
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("restore", "start a QEMU from a checkpoint; it runs in the background");
  command->add_option("CHECKPOINT", options->checkpoint, "id, unique prefix, or VMNAME@latest")->required();
  command->add_flag("--eager", options->eager, "fill all memory before the guest runs (the only mode yet)");
  command->add_flag("--foreground", options->foreground, "wait until the new QEMU ends");
  command->add_flag("--stopped", options->stopped, "leave the guest stopped");
  add_starting_options(*command, options->starting);
  command->add_option("--qmp", options->qmp,
                      "where the new monitor listens (default: where the old one did)");
  command->add_option("--threads", options->restore.threads, "threads that decode (default: by the cores)")
      ->check(CLI::Range(1U, 256U));
  command->add_option("--omitted-fill", options->omitted_fill,
                      "for tests: omitted pages read as this byte instead of zero");
  command->add_option("ARGUMENTS", options->restore.extra_arguments,
                      "behind `--`: further arguments for QEMU");
  add_common(*command, common, true);
  command->callback([common, options, &status] { status = restore_checkpoint(*options, *common); });
}

}  // namespace vmsieve::cli
