// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include <CLI/CLI.hpp>

#include "cli.h"

namespace vmsieve::cli {

namespace {

int remove(const std::vector<std::string>& names, const Common& common) {
  const auto store = open_store(common, false);
  if (!store) return report(store.error(), common);
  Json removed = Json::array();
  // All names first: a typing error must not leave half of the work done.
  std::vector<std::string> ids;
  for (const std::string& name : names) {
    auto id = (*store)->resolve(name);
    if (!id) return report(id.error(), common);
    ids.push_back(std::move(*id));
  }
  for (const std::string& id : ids) {
    if (const auto gone = (*store)->remove(id); !gone.ok()) return report(gone.error(), common);
    removed.push_back(id);
    if (!common.json) fmt::print("removed {}\n", id);
  }
  if (common.json) print_json({{"removed", std::move(removed)}});
  return kExitOk;
}

}  // namespace

void add_rm(CLI::App& app, int& status) {
  auto common = std::make_shared<Common>();
  auto names = std::make_shared<std::vector<std::string>>();
  CLI::App* command = app.add_subcommand("rm", "remove checkpoints");
  command->add_option("CHECKPOINT", *names, "id, unique prefix, or VMNAME@latest")->required();
  add_common(*command, common, true);
  command->callback([common, names, &status] { status = remove(*names, *common); });
}

}  // namespace vmsieve::cli
