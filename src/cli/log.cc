// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include <CLI/CLI.hpp>

#include "cli.h"

namespace vmsieve::cli {

namespace {

int status_of(const std::vector<DamagedCheckpoint>& damaged) {
  return damaged.empty() ? kExitOk : kExitDamaged;
}

int log_json(const Store& store, const Common& common) {
  const auto listing = store.list();
  if (!listing) return report(listing.error(), common);
  Json json = {{"store", store.name()},
               {"checkpoints", Json::array()},
               {"damaged", Json::array()},
               {"retired", {{"count", listing->retired}, {"bytes", listing->retired_bytes}}}};
  for (const Manifest& manifest : listing->checkpoints)
    json["checkpoints"].push_back(manifest_json(manifest));
  for (const DamagedCheckpoint& damaged : listing->damaged) {
    json["damaged"].push_back({{"checkpoint", damaged.id}, {"message", damaged.error.message()}});
  }
  print_json(json);
  return status_of(listing->damaged);
}

int log(const Common& common) {
  const auto store = open_store(common, false);
  if (!store) return report(store.error(), common);
  if (common.json) return log_json(**store, common);
  const auto listing = (*store)->summaries();
  if (!listing) return report(listing.error(), common);
  std::vector<std::vector<std::string>> rows = {
      {"CHECKPOINT", "VM", "CREATED", "MODE", "BUILDS ON", "PAUSE", "STORED", "RAM", "KERNEL"}};
  for (const CheckpointSummary& one : listing->checkpoints) {
    rows.push_back({one.id, one.vm_name, one.created, one.mode, one.parent.empty() ? "-" : one.parent,
                    human_ms(one.pause_ms), human_bytes(one.stored_bytes), human_bytes(one.guest_bytes),
                    one.kernel.empty() ? "-" : one.kernel});
  }
  std::fputs(table(rows, {5, 6, 7}).c_str(), stdout);
  if (listing->retired > 0) {
    fmt::print("and what these need of {} removed ones, {} on the disk\n", listing->retired,
               human_bytes(listing->retired_bytes));
  }
  for (const DamagedCheckpoint& damaged : listing->damaged) {
    warn(fmt::format("checkpoint {} cannot be used: {}", damaged.id, damaged.error.message()), common);
  }
  return status_of(listing->damaged);
}

}  // namespace

void add_log(CLI::App& app, int& status) {
  auto common = std::make_shared<Common>();
  CLI::App* command = app.add_subcommand("log", "list the checkpoints in the store, oldest first");
  add_common(*command, common, true);
  command->callback([common, &status] { status = log(*common); });
}

}  // namespace vmsieve::cli
