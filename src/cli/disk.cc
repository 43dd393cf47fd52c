// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include <CLI/CLI.hpp>

#include "cli.h"
#include "tidied.h"
#include "vmsieve/disks/flatten.h"
#include "vmsieve/disks/tidy.h"
#include "vmsieve/qemu/process.h"

namespace vmsieve::cli {

namespace {

int flatten(const std::string& vm, const Common& common) {
  const auto address = resolve_vm(vm);
  if (!address) return report(address.error(), common);
  const auto flattened = flatten_disks(*address, progress_bar(common));
  if (!flattened) return report(flattened.error(), common);
  end_progress(common);
  Json disks = Json::array();
  for (const Flattened& disk : *flattened) {
    disks.push_back({{"device", disk.device}, {"file", disk.file}, {"images_before", disk.before}});
    if (!common.json)
      fmt::print("{} ({}) needs no other image any more; there were {}\n", disk.file, disk.device,
                 disk.before - 1);
  }
  if (common.json) print_json({{"disks", std::move(disks)}});
  if (!common.json && flattened->empty()) fmt::print("no disk of this VM is over another image\n");
  return kExitOk;
}

int tidy(const Common& common) {
  const auto store = open_store(common, false);
  if (!store) return report(store.error(), common);
  const auto tidied = tidy_disks(**store, progress_bar(common));
  if (!tidied) return report(tidied.error(), common);
  end_progress(common);
  if (common.json) {
    Json json;
    add_tidied(json, *tidied);
    print_json(json);
    return kExitOk;
  }
  print_tidied(tidied->tidied);
  for (const UntidyDisk& disk : tidied->untidy) {
    fmt::print("{} of removed checkpoint {} is to be merged: {}\n", disk.file, disk.checkpoint, disk.reason);
  }
  return kExitOk;
}

}  // namespace

void add_disk(CLI::App& app, int& status) {
  auto common = std::make_shared<Common>();
  auto vm = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("disk", "the files that checkpoints of disks have made");
  command->require_subcommand(1);
  CLI::App* flat =
      command->add_subcommand("flatten", "make a running VM's disks independent of all images under them");
  flat->add_option("VM", *vm, "QMP socket, pid:N, or -name; none of libvirt's (virsh blockpull)")->required();
  add_common(*flat, common, false);
  flat->callback([common, vm, &status] { status = flatten(*vm, *common); });
  CLI::App* merge = command->add_subcommand(
      "tidy", "merge what no checkpoint needs any more (`rm`, `save` and `watch` do it by themselves)");
  add_common(*merge, common, true);
  merge->callback([common, &status] { status = tidy(*common); });
}

}  // namespace vmsieve::cli
