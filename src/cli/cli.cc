// SPDX-License-Identifier: Apache-2.0
#include "cli.h"

#include <unistd.h>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include <CLI/CLI.hpp>

namespace vmsieve::cli {

namespace {

constexpr const char* kExitStatusHelp =
    "EXIT STATUS\n"
    "   0  done\n"
    "   2  wrong usage\n"
    "   3  no such VM or checkpoint, or several fit the name\n"
    "   4  permission denied\n"
    "   5  reading or writing failed (full disk, lost mount)\n"
    "   6  stored data is damaged\n"
    "   7  checkpoint, QEMU, host or options do not fit each other\n"
    "   8  QEMU refused\n"
    "   9  QEMU went away or did not answer in time\n"
    "  10  held by somebody else";

bool bar_wanted(const Common& common) {
  return !common.quiet && !common.json && ::isatty(STDERR_FILENO) == 1;
}

}  // namespace

int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kUsage: return kExitUsage;
    case ErrorKind::kNotFound:
    case ErrorKind::kAmbiguous: return kExitNotFound;
    case ErrorKind::kPermission: return kExitPermission;
    case ErrorKind::kIo: return kExitIo;
    case ErrorKind::kDamaged: return kExitDamaged;
    case ErrorKind::kUnsupported:
    case ErrorKind::kIncompatible: return kExitIncompatible;
    case ErrorKind::kRefused: return kExitRefused;
    case ErrorKind::kVanished:
    case ErrorKind::kTimeout: return kExitVanished;
    case ErrorKind::kBusy: return kExitBusy;
  }
  return kExitIo;
}

void add_common(CLI::App& command, const std::shared_ptr<Common>& common, bool with_store) {
  command.add_flag("--json", common->json, "print one JSON object (docs/json.md) instead of text");
  command.add_flag("-q,--quiet", common->quiet, "no progress bar, no warnings");
  if (with_store) {
    command.add_option("--store", common->store,
                       "folder of the checkpoints (default: $VMSIEVE_STORE, else ~/.local/share/vmsieve)");
  }
  command.footer(kExitStatusHelp);
}

std::string store_path(const Common& common) {
  if (!common.store.empty()) return common.store;
  if (const char* store = std::getenv("VMSIEVE_STORE"); store != nullptr && *store != '\0') return store;
  if (const char* data = std::getenv("XDG_DATA_HOME"); data != nullptr && *data != '\0') {
    return std::string(data) + "/vmsieve";
  }
  const char* home = std::getenv("HOME");
  return std::string(home != nullptr && *home != '\0' ? home : "/root") + "/.local/share/vmsieve";
}

Result<std::unique_ptr<Store>> open_store(const Common& common, bool create) {
  VMSIEVE_ASSIGN(auto store, open_directory_store(store_path(common), create));
  // Sweeping is housekeeping: a store that is only readable still serves to read from.
  [[maybe_unused]] const auto swept = store->sweep(create ? Sweep::kAll : Sweep::kSafe);
  return store;
}

int report(const Error& error, const Common& common) {
  end_progress(common);
  if (common.json) {
    const Json json = {{"error", {{"kind", to_string(error.kind())}, {"message", error.message()}}}};
    std::fprintf(stderr, "%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    std::fprintf(stderr, "vmsieve: %s\n", error.message().c_str());
  }
  return exit_code(error.kind());
}

void warn(std::string_view message, const Common& common) {
  if (common.quiet) return;
  std::fprintf(stderr, "vmsieve: warning: %.*s\n", static_cast<int>(message.size()), message.data());
}

void print_json(const Json& json) {
  std::printf("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
}

std::string human_bytes(u64 bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string human_ms(double ms) {
  return ms < 1000 ? fmt::format("{:.1f} ms", ms) : fmt::format("{:.2f} s", ms / 1000);
}

Result<std::chrono::milliseconds> parse_duration(std::string_view text) {
  constexpr std::pair<std::string_view, u64> kUnits[] = {
      {"ms", 1}, {"s", 1000}, {"m", 60 * 1000}, {"h", 3600 * 1000}};
  constexpr u64 kMost = u64{366} * 24 * 3600 * 1000;
  u64 number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view suffix = text.substr(static_cast<std::size_t>(end - text.data()));
  for (const auto& [unit, ms] : kUnits) {
    if (error == std::errc{} && suffix == unit && number > 0 && number <= kMost / ms)
      return std::chrono::milliseconds(number * ms);
  }
  return make_error(ErrorKind::kUsage, "{} is no length of time such as 500ms, 10s, 5m or 1h", text);
}

std::string table(const std::vector<std::vector<std::string>>& rows, const std::vector<std::size_t>& right) {
  std::vector<std::size_t> width;
  for (const auto& row : rows) {
    width.resize(std::max(width.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const bool to_right = std::find(right.begin(), right.end(), i) != right.end();
      line +=
          to_right ? fmt::format("{:>{}}  ", row[i], width[i]) : fmt::format("{:<{}}  ", row[i], width[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  }
  return text;
}

ProgressFunction progress_bar(const Common& common) {
  if (!bar_wanted(common)) return [](const Progress&) {};
  auto last = std::make_shared<std::chrono::steady_clock::time_point>();
  return [last](const Progress& progress) {
    const auto now = std::chrono::steady_clock::now();
    if (now - *last < std::chrono::milliseconds(50)) return;
    *last = now;
    constexpr u64 kWidth = 40;
    std::string line = fmt::format("\r\033[K{:<20}", progress.phase);
    if (progress.total_bytes > 0) {
      const u64 filled = std::min(progress.done_bytes, progress.total_bytes) * kWidth / progress.total_bytes;
      line += fmt::format("[{:<{}}] {} of {}", std::string(filled, '#'), kWidth,
                          human_bytes(progress.done_bytes), human_bytes(progress.total_bytes));
    }
    std::fputs(line.c_str(), stderr);
  };
}

void end_progress(const Common& common) {
  if (bar_wanted(common)) std::fputs("\r\033[K", stderr);
}

Json manifest_json(const Manifest& m) {
  Json json = {
      {"checkpoint", m.id},
      {"vm", m.vm_name},
      {"created", m.created},
      {"mode", m.mode},
      {"parent", m.parent},
      {"pause_ms", m.pause_ms},
      {"total_ms", m.total_ms},
      {"stored_bytes", m.stored_bytes},
      {"guest_bytes", m.guest_bytes},
      {"compression", m.compression},
      {"pages",
       {{"total", m.pages.total},
        {"free", m.pages.free},
        {"zero", m.pages.zero},
        {"fill", m.pages.fill},
        {"saved", m.pages.saved}}},
      {"introspection",
       {{"used", m.introspection.used},
        {"kernel", m.introspection.kernel},
        {"reason", m.introspection.reason},
        {"classify_ms", m.introspection.classify_ms},
        {"free_pages",
         {{"buddy", m.introspection.free_pages.buddy},
          {"per_cpu", m.introspection.free_pages.per_cpu},
          {"hugetlb", m.introspection.free_pages.hugetlb},
          {"offline", m.introspection.free_pages.offline}}}}},
      {"machine", m.machine_type},
      {"accelerator", m.accelerator},
      {"qemu", m.qemu_version},
      {"vcpus", m.vcpus},
      {"was_running", m.was_running},
  };
  json["writable_disks"] = Json::array();
  for (const WritableDiskRecord& disk : m.writable_disks) {
    json["writable_disks"].push_back({{"device", disk.device}, {"file", disk.file}});
  }
  return json;
}

}  // namespace vmsieve::cli
