// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "cli.h"
#include "vmsieve/capture/save.h"
#include "vmsieve/restore/restore.h"

namespace vmsieve::cli {

/// Options of all commands that take checkpoints.
struct SavingOptions {
  std::string compress = "zstd";
  unsigned longest_wait_s = 30;
  bool no_introspection = false;
  std::vector<std::string> omit = {"per-cpu", "hugetlb"};
  unsigned threads = 0;
  u64 buffer_mib = 256;
  std::string disk;
  std::string disk_folder;
  bool quiesce = false;
  unsigned quiesce_s = 10;
};
void add_saving_options(CLI::App& command, SavingOptions& options);
/// `restores`: the command may restore as well, so that a folder for disks is of use whatever the way.
Result<SaveOptions> save_options(const SavingOptions& options, bool restores = false);

/// As docs/json.md has it for `save`.
Json save_json(const SaveReport& saved, const Store& store);
/// As docs/json.md has it for `save` and `show`.
Json disks_json(const DiskRecord& record);

/// Options of all commands that start a QEMU from a checkpoint.
struct StartingOptions {
  std::string qemu;
  std::vector<std::string> set;
  bool disks_as_they_are = false;
  std::string disk_folder;
  bool disk_temporary = false;
};
void add_starting_options(CLI::App& command, StartingOptions& options);
Result<void> set_starting_options(const StartingOptions& options, RestoreOptions& restoring);

}  // namespace vmsieve::cli
