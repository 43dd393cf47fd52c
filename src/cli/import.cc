// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/import.h"

#include <filesystem>

#include <CLI/CLI.hpp>

#include "cli.h"
#include "saving.h"

namespace vmsieve::cli {

namespace {

struct Options {
  std::string file;
  bool stopped = false;
  std::vector<std::string> command_line;
  SavingOptions saving;
};

/// How many times smaller.
double ratio_of(const ImportReport& imported) {
  const u64 stored = imported.saved.manifest.stored_bytes;
  return stored == 0 ? 0 : static_cast<double>(imported.allocated_bytes) / static_cast<double>(stored);
}

int import_one(const Options& options, const Common& common) {
  ImportOptions importing;
  importing.command_line = options.command_line;
  importing.working_directory = std::filesystem::current_path().string();
  const auto saving = save_options(options.saving);
  if (!saving) return report(saving.error(), common);
  importing.saving = *saving;
  if (options.stopped) importing.saving.was_running = false;
  const auto store = open_store(common, true);
  if (!store) return report(store.error(), common);
  const auto imported = import_file(options.file, **store, importing, progress_bar(common));
  if (!imported) return report(imported.error(), common);
  end_progress(common);
  const Manifest& m = imported->saved.manifest;
  for (const std::string& warning : imported->saved.warnings) warn(warning, common);
  if (common.json) {
    Json json = save_json(imported->saved, **store);
    json["import"] = {{"file", options.file},
                      {"format", to_string(imported->format)},
                      {"bytes", imported->file_bytes},
                      {"allocated_bytes", imported->allocated_bytes},
                      {"ratio", ratio_of(*imported)}};
    print_json(json);
    return kExitOk;
  }
  fmt::print("checkpoint {} of {} from {} in {}: {} of the file's {} ({:.1f} times smaller)\n", m.id,
             m.vm_name.empty() ? "a VM" : m.vm_name, options.file, (*store)->name(),
             human_bytes(m.stored_bytes), human_bytes(imported->allocated_bytes), ratio_of(*imported));
  if (!m.introspection.kernel.empty()) fmt::print("kernel Linux {}\n", m.introspection.kernel);
  if (!m.introspection.used) fmt::print("saved in full: {}\n", m.introspection.reason);
  return kExitOk;
}

}  // namespace

void add_import(CLI::App& app, int& status) {
  auto common = std::make_shared<Common>();
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "import", "make a checkpoint of a migration file of QEMU, of an image of virsh save, or of a core");
  command
      ->add_option(
          "FILE", options->file,
          "a migration stream, a mapped-ram file (QEMU 9.0 and later), an image of virsh save; or, to "
          "be looked at only, an ELF core of dump-guest-memory")
      ->required();
  command->add_flag("--stopped", options->stopped, "the guest did not run when the file was written");
  add_saving_options(*command, options->saving);
  command->add_option("COMMAND", options->command_line,
                      "behind `--`: the command line of the QEMU that wrote the file, its program first; not "
                      "needed for an image of virsh save, which libvirt then loads, and for a core");
  add_common(*command, common, true);
  command->callback([common, options, &status] { status = import_one(*options, *common); });
}

}  // namespace vmsieve::cli
