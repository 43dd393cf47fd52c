// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include <CLI/CLI.hpp>

#include "cli.h"
#include "vmsieve/capture/inspect.h"
#include "vmsieve/capture/tracking.h"
#include "vmsieve/qemu/process.h"

namespace vmsieve::cli {

namespace {

Result<Inspection> look_at(const QemuProcess& process) {
  VMSIEVE_ASSIGN(const VmAddress address, resolve_vm(fmt::format("pid:{}", process.pid)));
  return inspect_vm(address, {.threads = 0, .pause = false, .classes = false, .largest = 0});
}

int list_vms(const Common& common) {
  const auto processes = list_qemu_processes();
  if (!processes) return report(processes.error(), common);
  std::vector<std::vector<std::string>> rows = {
      {"NAME", "PID", "STATE", "RAM", "USED", "FREE", "ACCEL", "KERNEL", "TRACKED", "MONITOR"}};
  Json vms = Json::array();
  for (const QemuProcess& process : *processes) {
    // Through its libvirt a domain answers to another name.
    const bool libvirts = started_by_libvirt(process);
    const std::string name = libvirts ? "libvirt:" + process.name : process.name;
    const std::string qmp = libvirts || process.qmp_paths.empty() ? "" : process.qmp_paths.front();
    Json vm = {{"name", name}, {"pid", process.pid}, {"qmp", qmp}};
    std::string since = "-";
    if (const auto tracking = Tracking::find(process.pid); tracking.ok() && *tracking) {
      const TrackingRecord& record = (*tracking)->record();
      since = record.checkpoint.empty() ? "next is full" : record.checkpoint;
      vm["tracking"] = {{"holder", (*tracking)->holder()},
                        {"store", record.store},
                        {"checkpoint", record.checkpoint},
                        {"reason", record.why_none}};
    }
    const Result<Inspection> seen = look_at(process);
    if (seen) {
      vm.update({{"total_bytes", seen->total_bytes},
                 {"used_bytes", seen->used_bytes},
                 {"free_bytes", seen->free_bytes},
                 {"running", seen->running},
                 {"accelerator", seen->accelerator},
                 {"kernel", seen->kernel},
                 {"reason", seen->reason}});
      // Without a kernel nothing is known of what is used.
      const bool known = !seen->kernel.empty();
      rows.push_back({name, std::to_string(process.pid), seen->running ? "running" : "stopped",
                      human_bytes(seen->total_bytes), known ? human_bytes(seen->used_bytes) : "-",
                      known ? human_bytes(seen->free_bytes) : "-", seen->accelerator,
                      known ? seen->kernel : "-", since, libvirts ? "libvirt's" : qmp});
    } else {
      vm["reason"] = seen.error().message();
      rows.push_back({name, std::to_string(process.pid), "-", "-", "-", "-", "-", "-", since,
                      fmt::format("- ({})", seen.error().message())});
    }
    vms.push_back(std::move(vm));
  }
  if (common.json) {
    print_json({{"vms", std::move(vms)}});
  } else if (processes->empty()) {
    std::puts("no QEMU is running that this user can see");
  } else {
    std::fputs(table(rows, {1, 3, 4, 5}).c_str(), stdout);
  }
  return kExitOk;
}

}  // namespace

void add_ls(CLI::App& app, int& status) {
  auto common = std::make_shared<Common>();
  CLI::App* command = app.add_subcommand("ls", "list the VMs that can be seen, with what their guests use");
  add_common(*command, common, false);
  command->callback([common, &status] { status = list_vms(*common); });
}

}  // namespace vmsieve::cli
