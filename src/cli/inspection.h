// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "cli.h"
#include "vmsieve/capture/inspect.h"

namespace vmsieve::cli {

/// Options of a look into a guest's memory, whether it runs or is in a checkpoint.
struct LookOptions {
  std::string svg;
  std::string png;
  std::size_t largest = 10;

  bool pictures() const { return !svg.empty() || !png.empty(); }
};
void add_look_options(CLI::App& command, LookOptions& options);

/// Members named as in docs/json.md; `runs` with `pages`.
Json inspection_json(const Inspection& seen, bool pages);
/// Classes, processes and files as tables.
void print_memory(const Inspection& seen);
void print_runs(const std::vector<PfnClassRun>& runs);
/// Writes the pictures that were asked for; kExitOk, or the exit code of what was reported.
int write_pictures(const Inspection& seen, const LookOptions& options, const Common& common);

}  // namespace vmsieve::cli
