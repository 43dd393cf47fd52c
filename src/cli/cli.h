// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"
#include "vmsieve/store/store.h"

namespace CLI {
class App;
}

namespace vmsieve::cli {

using Json = nlohmann::ordered_json;

/// Documented in every command's help, in man/vmsieve.1 and in docs/json.md.
enum ExitCode : int {
  kExitOk = 0,
  kExitUsage = 2,
  kExitNotFound = 3,
  kExitPermission = 4,
  kExitIo = 5,
  kExitDamaged = 6,
  kExitIncompatible = 7,
  kExitRefused = 8,
  kExitVanished = 9,
  kExitBusy = 10,
};
int exit_code(ErrorKind kind);

/// Options that every command has.
struct Common {
  bool json = false;
  bool quiet = false;  ///< no progress bar, no warnings
  std::string store;   ///< --store; see store_path()
};

/// Adds --json and --quiet, and the exit codes under the help text; `with_store` adds --store.
void add_common(CLI::App& command, const std::shared_ptr<Common>& common, bool with_store);

/// --store, else $VMSIEVE_STORE, else $XDG_DATA_HOME/vmsieve or ~/.local/share/vmsieve.
std::string store_path(const Common& common);
/// Opens the store and sweeps what dead writers left (a store that cannot be written is not swept). With
/// `create` it may be made, and interrupted removals are swept too.
Result<std::unique_ptr<Store>> open_store(const Common& common, bool create);

/// Prints the error (text or JSON, to standard error) and returns its exit code.
int report(const Error& error, const Common& common);
void warn(std::string_view message, const Common& common);
void print_json(const Json& json);

/// "1.5 GiB"
std::string human_bytes(u64 bytes);
/// "12.3 ms", "4.56 s"
std::string human_ms(double ms);

/// "500ms", "10s", "5m", "1h": more than nothing, a year at most.
Result<std::chrono::milliseconds> parse_duration(std::string_view text);

/// Rows of cells, columns aligned: the first row is the header. Columns in `right` are aligned to the right.
std::string table(const std::vector<std::vector<std::string>>& rows, const std::vector<std::size_t>& right);

/// A progress bar on standard error if that is a terminal and neither --quiet nor --json was
/// given; nothing otherwise.
ProgressFunction progress_bar(const Common& common);
/// Wipes the bar's line.
void end_progress(const Common& common);

/// One function per command: adds the subcommand; its callback stores the exit code in `status`.
void add_ls(CLI::App& app, int& status);
void add_inspect(CLI::App& app, int& status);
void add_save(CLI::App& app, int& status);
void add_restore(CLI::App& app, int& status);
void add_export(CLI::App& app, int& status);
void add_import(CLI::App& app, int& status);
void add_log(CLI::App& app, int& status);
void add_show(CLI::App& app, int& status);
void add_verify(CLI::App& app, int& status);
void add_rm(CLI::App& app, int& status);
void add_untrack(CLI::App& app, int& status);
void add_disk(CLI::App& app, int& status);
void add_watch(CLI::App& app, int& status);

/// Part of `save`, `show` and `log`: members named as in docs/json.md.
Json manifest_json(const Manifest& manifest);

}  // namespace vmsieve::cli
