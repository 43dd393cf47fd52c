// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>

#include <CLI/CLI.hpp>

#include "cli.h"
#include "tidied.h"
#include "vmsieve/disks/tidy.h"

namespace vmsieve::cli {

namespace {

/// A removed checkpoint whose memory object stays in part, and those that need it.
struct Kept {
  std::string id;
  std::vector<std::string> needed_by;
};

/// What of `kept` is still so when all of `removed` are gone: one removal may end what another was kept for.
std::vector<Kept> still_needed(std::vector<Kept> kept, const std::vector<std::string>& removed) {
  for (Kept& entry : kept) {
    std::erase_if(entry.needed_by, [&removed](const std::string& id) {
      return std::find(removed.begin(), removed.end(), id) != removed.end();
    });
  }
  std::erase_if(kept, [](const Kept& entry) { return entry.needed_by.empty(); });
  return kept;
}

/// Of what waits, what these checkpoints have left; the rest has been told of when it was left.
void print_disks(const Tidied& tidied, const std::vector<std::string>& removed) {
  print_tidied(tidied.tidied);
  std::size_t others = 0;
  for (const UntidyDisk& disk : tidied.untidy) {
    if (std::find(removed.begin(), removed.end(), disk.checkpoint) == removed.end()) {
      ++others;
      continue;
    }
    fmt::print("kept {} of {}, to be merged later: {}\n", disk.file, disk.checkpoint, disk.reason);
  }
  if (others > 0)
    fmt::print("{} more of checkpoints that were removed before: vmsieve disk tidy tells why\n",
               others == 1 ? "1 file" : fmt::format("{} files", others));
}

int remove(const std::vector<std::string>& names, const Common& common) {
  const auto store = open_store(common, false);
  if (!store) return report(store.error(), common);
  // All names first: a typing error must not leave half of the work done.
  std::vector<std::string> ids;
  for (const std::string& name : names) {
    auto id = (*store)->resolve(name);
    if (!id) return report(id.error(), common);
    if (std::find(ids.begin(), ids.end(), *id) == ids.end()) ids.push_back(std::move(*id));
  }
  std::vector<Kept> kept;
  for (const std::string& id : ids) {
    auto removal = (*store)->remove(id);
    if (!removal) return report(removal.error(), common);
    kept.push_back({id, std::move(removal->needed_by)});
    if (!common.json) fmt::print("removed {}\n", id);
  }
  // Gives room back, once for all of them; what it cannot do now, the next command does.
  [[maybe_unused]] const auto swept = (*store)->sweep();
  const auto tidied = tidy_disks(**store, progress_bar(common));
  end_progress(common);
  Json retired = Json::array();
  for (const Kept& entry : still_needed(std::move(kept), ids)) {
    retired.push_back({{"checkpoint", entry.id}, {"needed_by", entry.needed_by}});
    if (!common.json) {
      fmt::print("kept of {} what {} {}\n", entry.id, fmt::join(entry.needed_by, ", "),
                 entry.needed_by.size() == 1 ? "needs" : "need");
    }
  }
  if (!tidied) warn("disks were not put back together: " + tidied.error().message(), common);
  if (common.json) {
    Json json = {{"removed", ids}, {"retired", std::move(retired)}};
    add_tidied(json, tidied ? *tidied : Tidied{});
    print_json(json);
  } else if (tidied) {
    print_disks(*tidied, ids);
  }
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
