// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include <CLI/CLI.hpp>

#include "cli.h"
#include "vmsieve/capture/inspect.h"

namespace vmsieve::cli {

namespace {

Json runs_json(const std::vector<PfnClassRun>& runs) {
  Json json = Json::array();
  for (const PfnClassRun& run : runs) {
    json.push_back({{"first_pfn", run.first_pfn}, {"count", run.count}, {"class", run.name}});
  }
  return json;
}

int inspect(const std::string& vm, bool pages, unsigned threads, const Common& common) {
  const auto address = resolve_vm(vm);
  if (!address) return report(address.error(), common);
  const auto seen = inspect_vm(*address, threads);
  if (!seen) return report(seen.error(), common);
  if (common.json) {
    Json json = {{"vm", seen->vm_name},
                 {"pid", seen->pid},
                 {"qmp", seen->qmp_path},
                 {"accelerator", seen->accelerator},
                 {"running", seen->running},
                 {"vcpus", seen->vcpus},
                 {"kernel", seen->kernel},
                 {"reason", seen->reason},
                 {"exact", seen->exact},
                 {"total_bytes", seen->total_bytes},
                 {"free_bytes", seen->free_bytes},
                 {"used_bytes", seen->used_bytes},
                 {"find_ms", seen->find_ms},
                 {"classify_ms", seen->classify_ms}};
    if (pages) json["runs"] = runs_json(seen->runs);
    print_json(json);
    return kExitOk;
  }
  const auto share = [&](u64 bytes) {
    return seen->total_bytes == 0 ? std::string("-")
                                  : fmt::format("{:.1f}%", 100.0 * static_cast<double>(bytes) /
                                                               static_cast<double>(seen->total_bytes));
  };
  fmt::print("{} (pid {}), {} vCPUs under {}, {}\n", seen->vm_name.empty() ? "unnamed VM" : seen->vm_name,
             seen->pid, seen->vcpus, seen->accelerator, seen->running ? "running" : "stopped");
  fmt::print("kernel: {}\n", seen->kernel.empty() ? "none found" : "Linux " + seen->kernel);
  if (!seen->reason.empty()) fmt::print("note: {}\n", seen->reason);
  std::fputs(table({{"", "BYTES", "SHARE"},
                    {"total", human_bytes(seen->total_bytes), ""},
                    {"used", human_bytes(seen->used_bytes), share(seen->used_bytes)},
                    {"free", human_bytes(seen->free_bytes), share(seen->free_bytes)}},
                   {1, 2})
                 .c_str(),
             stdout);
  if (pages) {
    std::vector<std::vector<std::string>> rows = {{"FIRST PFN", "PAGES", "CLASS"}};
    for (const PfnClassRun& run : seen->runs) {
      rows.push_back({fmt::format("{:#x}", run.first_pfn), std::to_string(run.count), run.name});
    }
    std::fputs(table(rows, {0, 1}).c_str(), stdout);
  }
  return kExitOk;
}

}  // namespace

void add_inspect(CLI::App& app, int& status) {
  struct Options {
    std::string vm;
    bool pages = false;
    unsigned threads = 0;
  };
  auto common = std::make_shared<Common>();
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("inspect", "show where a VM's memory is, without stopping its guest");
  command->add_option("VM", options->vm, "QMP socket, pid:N, or -name")->required();
  command->add_flag("--pages", options->pages, "list every run of page frames with its class");
  command->add_option("--threads", options->threads, "threads (default: one for each core)")
      ->check(CLI::Range(1U, 256U));
  add_common(*command, common, false);
  command->callback([common, options, &status] {
    status = inspect(options->vm, options->pages, options->threads, *common);
  });
}

}  // namespace vmsieve::cli
