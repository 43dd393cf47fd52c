// SPDX-License-Identifier: Apache-2.0
#include "tidied.h"

#include <cstdio>

namespace vmsieve::cli {

void print_tidied(const std::vector<TidiedFile>& tidied) {
  for (const TidiedFile& one : tidied) {
    if (one.image.empty()) {
      fmt::print("removed {}\n", one.file);
    } else {
      fmt::print("merged {} into {}{}\n", one.file, one.image,
                 one.emptied ? "; it stays, empty, as its name may be on a command line" : "");
    }
  }
}

void add_tidied(Json& json, const Tidied& report) {
  Json tidied = Json::array();
  for (const TidiedFile& one : report.tidied) {
    Json file = {{"checkpoint", one.checkpoint}, {"file", one.file}};
    if (!one.image.empty()) file["image"] = one.image;
    if (one.emptied) file["emptied"] = true;
    tidied.push_back(std::move(file));
  }
  Json untidy = Json::array();
  for (const UntidyDisk& disk : report.untidy)
    untidy.push_back({{"checkpoint", disk.checkpoint}, {"file", disk.file}, {"reason", disk.reason}});
  json["tidied_disks"] = std::move(tidied);
  json["untidy_disks"] = std::move(untidy);
}

}  // namespace vmsieve::cli
