// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include <CLI/CLI.hpp>

#include "cli.h"
#include "inspection.h"
#include "vmsieve/capture/inspect.h"

namespace vmsieve::cli {

namespace {

struct Options {
  std::string vm;
  bool pages = false;
  bool pause = false;
  unsigned threads = 0;
  LookOptions look;
};

int inspect(const Options& options, const Common& common) {
  const auto address = resolve_vm(options.vm);
  if (!address) return report(address.error(), common);
  const auto seen = inspect_vm(
      *address,
      {.threads = options.threads, .pause = options.pause, .classes = true, .largest = options.look.largest});
  if (!seen) return report(seen.error(), common);
  if (const int status = write_pictures(*seen, options.look, common); status != kExitOk) return status;
  if (common.json) {
    print_json(inspection_json(*seen, options.pages));
    return kExitOk;
  }
  fmt::print("{} (pid {}), {} vCPUs under {}, {}\n", seen->vm_name.empty() ? "unnamed VM" : seen->vm_name,
             seen->pid, seen->vcpus, seen->accelerator, seen->running ? "running" : "stopped");
  fmt::print("kernel: {}\n", seen->kernel.empty() ? "none found" : "Linux " + seen->kernel);
  if (!seen->reason.empty()) fmt::print("note: {}\n", seen->reason);
  if (seen->paused) {
    fmt::print("looked at while the guest was stopped, {}\n", human_ms(seen->pause_ms));
  } else if (seen->running) {
    std::puts("looked at while the guest ran: single pages may have changed under the look");
  }
  print_memory(*seen);
  if (options.pages) print_runs(seen->runs);
  return kExitOk;
}

}  // namespace

void add_inspect(CLI::App& app, int& status) {
  auto common = std::make_shared<Common>();
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("inspect", "show where a VM's memory is, without stopping its guest");
  command->add_option("VM", options->vm, "QMP socket, pid:N, -name, or libvirt:NAME")->required();
  command->add_flag("--pages", options->pages, "list every run of page frames with its class");
  command->add_flag("--pause", options->pause,
                    "stop the guest for the look, so that all figures are of one moment");
  add_look_options(*command, options->look);
  command->add_option("--threads", options->threads, "threads (default: one for each core)")
      ->check(CLI::Range(1U, 256U));
  add_common(*command, common, false);
  command->callback([common, options, &status] { status = inspect(*options, *common); });
}

}  // namespace vmsieve::cli
