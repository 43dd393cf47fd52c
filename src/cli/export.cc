// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/export.h"

#include <unistd.h>
#include <cstdio>
#include <thread>

#include <CLI/CLI.hpp>

#include "cli.h"
#include "vmsieve/formats/libvirt_image.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve::cli {

namespace {

struct Options {
  std::string checkpoint;
  std::string output;
  std::string format;
  std::string xml;
  unsigned threads = 0;
};

int export_one(const Options& options, const Common& common) {
  const auto store = open_store(common, false);
  if (!store) return report(store.error(), common);
  const auto id = (*store)->resolve(options.checkpoint);
  if (!id) return report(id.error(), common);
  const auto reader = CheckpointReader::open(**store, *id);
  if (!reader) return report(reader.error(), common);
  const unsigned threads =
      options.threads != 0 ? options.threads : std::max(1U, std::thread::hardware_concurrency());
  ExportOptions exporting{.format = *parse_export_format(options.format), .threads = threads};
  if (!options.xml.empty()) {
    auto xml = read_text_file(options.xml, LibvirtImageHead::kMaxDataBytes);
    if (!xml) return report(xml.error(), common);
    exporting.domain_xml = std::move(*xml);
  }
  const auto exported = export_checkpoint(**reader, exporting, options.output, progress_bar(common));
  if (!exported) return report(exported.error(), common);
  end_progress(common);
  if (options.output == "-") return kExitOk;  // the stream is all that belongs there
  if (common.json) {
    print_json({{"checkpoint", *id},
                {"format", options.format},
                {"output", options.output},
                {"bytes", exported->bytes},
                {"allocated_bytes", exported->allocated_bytes}});
  } else {
    fmt::print("checkpoint {} as {} in {}: {}, {} on the disk\n", *id, options.format, options.output,
               human_bytes(exported->bytes), human_bytes(exported->allocated_bytes));
  }
  return kExitOk;
}

}  // namespace

void add_export(CLI::App& app, int& status) {
  auto common = std::make_shared<Common>();
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("export", "write a checkpoint in the format of another program");
  command->add_option("CHECKPOINT", options->checkpoint, "id, unique prefix, or VMNAME@latest")->required();
  command
      ->add_option("--format", options->format,
                   "qemu (for QEMU's -incoming), qemu-mapped-ram (for QEMU 9.0 and later), libvirt (for "
                   "virsh restore), raw (main memory by address), elf (a core for drgn and makedumpfile)")
      ->required()
      ->check(CLI::IsMember({"qemu", "qemu-mapped-ram", "libvirt", "raw", "elf"}));
  command
      ->add_option("--output", options->output, "the file to write; - is standard output (qemu and libvirt)")
      ->required();
  command->add_option("--xml", options->xml,
                      "libvirt: a file with the domain's XML (default: that of the domain that was saved)");
  command->add_option("--threads", options->threads, "threads that decode (default: one per core)")
      ->check(CLI::Range(1U, 256U));
  add_common(*command, common, true);
  command->callback([common, options, &status] { status = export_one(*options, *common); });
}

}  // namespace vmsieve::cli
