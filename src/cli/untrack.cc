// SPDX-License-Identifier: Apache-2.0
#include <sys/stat.h>
#include <unistd.h>
#include <cstdio>

#include <CLI/CLI.hpp>

#include "cli.h"
#include "vmsieve/capture/tracking.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/qemu/vm_lock.h"

namespace vmsieve::cli {

namespace {

int untrack(const std::string& name, const Common& common) {
  const auto address = resolve_vm(name);
  if (!address) return report(address.error(), common);
  const pid_t pid = address->process.pid;
  const auto lock = VmLock::take(pid);
  if (!lock) return report(lock.error(), common);
  auto tracking = Tracking::find(pid);
  if (!tracking) return report(tracking.error(), common);
  const bool tracked = tracking->has_value();
  struct stat process {};
  if (!tracked && ::geteuid() != 0 && ::stat(fmt::format("/proc/{}", pid).c_str(), &process) == 0 &&
      process.st_uid != ::geteuid()) {
    return report(make_error(ErrorKind::kPermission, "process {} is another user's: {}", pid,
                             "whether it is tracked only that user and root can see"),
                  common);
  }
  if (tracked) {
    if (const auto ended = (*tracking)->end(); !ended) return report(ended.error(), common);
  }
  if (common.json) {
    print_json({{"pid", pid}, {"was_tracked", tracked}});
  } else {
    fmt::print("process {} {}\n", pid, tracked ? "is not tracked any more" : "was not tracked");
  }
  return kExitOk;
}

}  // namespace

void add_untrack(CLI::App& app, int& status) {
  auto common = std::make_shared<Common>();
  auto name = std::make_shared<std::string>();
  CLI::App* command =
      app.add_subcommand("untrack", "end what `save --incremental` began: noting which pages a VM writes");
  command->add_option("VM", *name, "QMP socket, pid:N, -name, or libvirt:NAME")->required();
  add_common(*command, common, false);
  command->callback([common, name, &status] { status = untrack(*name, *common); });
}

}  // namespace vmsieve::cli
