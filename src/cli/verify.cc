// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include <CLI/CLI.hpp>

#include "cli.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve::cli {

namespace {

Result<void> verify_one(const Store& store, const std::string& id, const ProgressFunction& progress) {
  VMSIEVE_ASSIGN(const auto reader, CheckpointReader::open(store, id));
  return reader->verify([&](u64 done, u64 total) { progress({"verifying", done, total}); });
}

int verify(const std::vector<std::string>& names, const Common& common) {
  const auto store = open_store(common, false);
  if (!store) return report(store.error(), common);
  std::vector<std::string> ids;
  for (const std::string& name : names) {
    auto id = (*store)->resolve(name);
    if (!id) return report(id.error(), common);
    ids.push_back(std::move(*id));
  }
  if (names.empty()) {
    const auto listing = (*store)->list();
    if (!listing) return report(listing.error(), common);
    for (const Manifest& manifest : listing->checkpoints) ids.push_back(manifest.id);
    for (const DamagedCheckpoint& damaged : listing->damaged) ids.push_back(damaged.id);
  }
  int status = kExitOk;
  Json results = Json::array();
  for (const std::string& id : ids) {
    const auto good = verify_one(**store, id, progress_bar(common));
    end_progress(common);
    results.push_back({{"checkpoint", id}, {"ok", good.ok()}});
    if (!good.ok()) {
      results.back()["kind"] = to_string(good.error().kind());
      results.back()["message"] = good.error().message();
      status = exit_code(good.error().kind());
    }
    if (!common.json) {
      if (good.ok()) {
        fmt::print("{} is whole\n", id);
      } else {
        const std::string& message = good.error().message();
        const bool named = message.find(id) != std::string::npos;
        fmt::print(stderr, "vmsieve: {}{}\n", named ? "" : fmt::format("checkpoint {}: ", id), message);
      }
    }
  }
  if (common.json) print_json({{"results", std::move(results)}});
  return status;
}

}  // namespace

void add_verify(CLI::App& app, int& status) {
  auto common = std::make_shared<Common>();
  auto names = std::make_shared<std::vector<std::string>>();
  CLI::App* command = app.add_subcommand("verify", "read every byte of checkpoints and check it");
  command->add_option("CHECKPOINT", *names,
                      "id, unique prefix, or VMNAME@latest (default: all in the store)");
  add_common(*command, common, true);
  command->callback([common, names, &status] { status = verify(*names, *common); });
}

}  // namespace vmsieve::cli
