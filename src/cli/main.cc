// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <unistd.h>
#include <algorithm>
#include <csignal>
#include <cstdio>

#include <CLI/CLI.hpp>

#include "cli.h"
#include "vmsieve/qemu/forked_child.h"
#include "vmsieve_version.h"

namespace {

/// Asked for JSON or not is not known when the command line cannot be understood; so look for the word.
int usage(const std::string& message, int argc, char** argv) {
  using namespace vmsieve;
  cli::Common common;
  common.json =
      std::any_of(argv, argv + argc, [](const char* word) { return std::string_view(word) == "--json"; });
  return cli::report(Error(ErrorKind::kUsage, message), common);
}

/// A descriptor that is closed would be the next file or socket that is opened, and get what is printed.
void open_standard_descriptors() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0) continue;
    // The lowest one that is free is this one.
    if (::open("/dev/null", fd == STDIN_FILENO ? O_RDONLY : O_WRONLY) != fd) return;
  }
}

/// Did all that was printed get through? What was done is done, but who asked does not know it.
int after_output(int status) {
  using namespace vmsieve;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return status;
  (void)cli::report(Error(ErrorKind::kIo, "standard output does not take what was printed"), {});
  return status == cli::kExitOk ? cli::kExitIo : status;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace vmsieve::cli;
  open_standard_descriptors();
  vmsieve::let_children_rename(argc, argv);
  // A reader of our output that goes away must not kill us in the middle of a pause.
  std::signal(SIGPIPE, SIG_IGN);
  CLI::App app{
      "Checkpoints and restores QEMU/KVM virtual machines by what they really use.\n"
      "VM is a QMP socket's path, pid:N, a QEMU -name, or libvirt:NAME. CHECKPOINT is an id,\n"
      "a unique prefix of one, or VMNAME@latest."};
  app.name("vmsieve");
  app.set_version_flag("--version", "vmsieve " VMSIEVE_VERSION);
  app.require_subcommand(1);
  app.footer("`vmsieve COMMAND --help` tells a command's options and exit codes.");
  int status = kExitOk;
  add_ls(app, status);
  add_inspect(app, status);
  add_save(app, status);
  add_restore(app, status);
  add_export(app, status);
  add_import(app, status);
  add_log(app, status);
  add_show(app, status);
  add_verify(app, status);
  add_rm(app, status);
  add_untrack(app, status);
  add_disk(app, status);
  add_watch(app, status);
  const auto commands = app.get_subcommands([](const CLI::App*) { return true; });
  const auto is_named = [&](const CLI::App* command) { return command->get_name() == argv[1]; };
  if (argc > 1 && argv[1][0] != '-' && std::ranges::none_of(commands, is_named)) {
    return usage(fmt::format("there is no command {} (vmsieve --help lists them)", argv[1]), argc, argv);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return after_output(app.exit(error));  // --help, --version
    return usage(fmt::format("{} (vmsieve --help tells more)", error.what()), argc, argv);
  }
  return after_output(status);
}
