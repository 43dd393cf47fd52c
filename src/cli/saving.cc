// SPDX-License-Identifier: Apache-2.0
#include "saving.h"

#include <algorithm>
#include <chrono>
#include <filesystem>

#include <CLI/CLI.hpp>

namespace vmsieve::cli {

namespace {

/// A folder for files of QEMU's: a path that is good wherever QEMU was started.
Result<std::string> disk_folder(const std::string& folder) {
  if (folder.empty()) return folder;
  std::error_code error;
  const auto path = std::filesystem::canonical(folder, error);
  if (error || !std::filesystem::is_directory(path, error))
    return make_error(ErrorKind::kNotFound, "--disk-folder {}: there is no such folder", folder);
  return path.string();
}

}  // namespace

void add_saving_options(CLI::App& command, SavingOptions& options) {
  command
      .add_option(
          "--disk", options.disk,
          "writable disks: snapshot (default: the VM goes on in new files over its images), internal "
          "(a snapshot in each qcow2 image), copy (into the store), none (not part of the checkpoint)")
      ->check(CLI::IsMember({"snapshot", "internal", "copy", "none"}));
  command.add_option("--disk-folder", options.disk_folder,
                     "where the new files of --disk snapshot go (default: beside each image)");
  command.add_flag("--quiesce", options.quiesce,
                   "let the guest's agent (qemu-guest-agent) freeze its file systems for the pause");
  command
      .add_option("--quiesce-limit", options.quiesce_s,
                  "seconds that the agent has to freeze them, else there is no checkpoint")
      ->capture_default_str()
      ->check(CLI::Range(1U, 600U));
  command
      .add_option(
          "--longest-wait", options.longest_wait_s,
          "seconds that a save may make a write of the guest, or the guest itself, wait for the store")
      ->capture_default_str()
      ->check(CLI::Range(1U, 3600U));
  command.add_option("--compress", options.compress, "none, lz4, zstd or zstd:LEVEL (1 to 19)")
      ->capture_default_str();
  command.add_flag("--no-introspection", options.no_introspection, "save every page, free or not");
  command
      .add_option("--omit", options.omit,
                  "kinds of free pages to leave out beside the buddy allocator's: per-cpu (lists), hugetlb "
                  "(free pages of pools), offline (balloon, unplugged), none")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember({"per-cpu", "hugetlb", "offline", "none"}));
  command.add_option("--threads", options.threads, "threads (default: one for each core)")
      ->check(CLI::Range(1U, 256U));
  command.add_option("--buffer-mib", options.buffer_mib, "MiB of guest pages held in memory at most")
      ->capture_default_str()
      ->check(CLI::Range(1U, 1048576U));
}

Result<SaveOptions> save_options(const SavingOptions& options, bool restores) {
  SaveOptions saving;
  VMSIEVE_ASSIGN(saving.compression, Compression::parse(options.compress));
  const auto omitted = [&](std::string_view kind) { return std::ranges::count(options.omit, kind) != 0; };
  saving.introspection = !options.no_introspection;
  saving.kinds = {
      .per_cpu = omitted("per-cpu"), .hugetlb = omitted("hugetlb"), .offline = omitted("offline")};
  saving.threads = options.threads;
  saving.buffer_bytes = options.buffer_mib * kMiB;
  saving.longest_wait = std::chrono::seconds(options.longest_wait_s);
  if (options.disk == "internal") saving.disks.way = DiskWay::kInternal;
  if (options.disk == "copy") saving.disks.way = DiskWay::kCopy;
  if (options.disk == "none") saving.disks.way.reset();
  if (options.quiesce) saving.quiesce = std::chrono::seconds(options.quiesce_s);
  const bool snapshot = options.disk.empty() || options.disk == "snapshot";
  if (!options.disk_folder.empty() && !snapshot && !restores)
    return make_error(ErrorKind::kUsage,
                      "--disk-folder is for --disk snapshot: --disk {} makes no files in it", options.disk);
  VMSIEVE_ASSIGN(saving.disks.folder, disk_folder(options.disk_folder));
  return saving;
}

Json save_json(const SaveReport& saved, const Store& store) {
  Json json = manifest_json(saved.manifest);
  json["store"] = store.name();
  json["pause"] = {{"stop_ms", saved.pause.stop_ms},     {"classify_ms", saved.pause.classify_ms},
                   {"device_ms", saved.pause.device_ms}, {"disks_ms", saved.pause.disks_ms},
                   {"plan_ms", saved.pause.plan_ms},     {"read_ms", saved.pause.read_ms},
                   {"freeze_ms", saved.pause.freeze_ms}, {"resume_ms", saved.pause.resume_ms}};
  if (const TrackedReport& tracked = saved.tracked; tracked.noted || !tracked.reason.empty()) {
    const TrackedFigures& figures = tracked.figures;
    json["tracking"] = {{"tracked", tracked.tracked},
                        {"incremental", tracked.incremental},
                        {"reason", tracked.reason},
                        {"prepare_ms", saved.live.prepare_ms},
                        {"ahead_ms", figures.before_ms},
                        {"rounds", figures.rounds},
                        {"early_pause_ms", tracked.early_pause_ms},
                        {"scan_ms", figures.scan_ms},
                        {"copied_bytes", figures.copied_pages * kPageSize},
                        {"copied_in_pause_bytes", figures.frozen_pages * kPageSize},
                        {"sections_reused", saved.live.sections_reused}};
  }
  if (saved.manifest.mode == "live" && !saved.tracked.noted) {
    const LiveFigures& figures = saved.live.figures;
    json["live"] = {{"prepare_ms", saved.live.prepare_ms},
                    {"copy_ms", saved.live.copy_ms},
                    {"rewritten_bytes", figures.rewritten_bytes},
                    {"sections_reused", saved.live.sections_reused},
                    {"waits", figures.waits},
                    {"longest_wait_ms", figures.longest_wait_ms}};
  }
  if (saved.frozen_file_systems) json["frozen_file_systems"] = *saved.frozen_file_systems;
  if (!saved.disks.disks.empty()) json["disks"] = disks_json(saved.disks);
  json["warnings"] = saved.warnings;
  return json;
}

Json disks_json(const DiskRecord& record) {
  Json json{{"way", to_string(record.way)}, {"disks", Json::array()}};
  for (u64 i = 0; i < record.disks.size(); ++i) {
    const SavedDisk& disk = record.disks[i];
    Json one{{"device", disk.device}, {"qdev", disk.qdev}, {"bytes", disk.virtual_bytes}};
    if (record.way == DiskWay::kCopy) {
      one["object"] = disk_object(i);
    } else {
      one["image"] = disk.image;
      one["format"] = disk.format;
    }
    if (!disk.overlay.empty()) one["overlay"] = disk.overlay;
    if (!disk.snapshot.empty()) one["snapshot"] = disk.snapshot;
    json["disks"].push_back(std::move(one));
  }
  return json;
}

void add_starting_options(CLI::App& command, StartingOptions& options) {
  command.add_flag("--disks-as-they-are", options.disks_as_they_are,
                   "use the disks of the command line, which hold what they held at the checkpoint, or may "
                   "differ");
  // Of a command that takes checkpoints as well there is one for both.
  if (command.get_option_no_throw("--disk-folder") == nullptr)
    command.add_option("--disk-folder", options.disk_folder,
                       "where the files go that the guest writes to, over the checkpoint's images (default: "
                       "beside each image)");
  command.add_flag("--disk-temporary", options.disk_temporary,
                   "what the guest writes to its disks is gone when its QEMU ends");
  command.add_option("--qemu", options.qemu, "QEMU to start (default: the recorded one)");
  // One value each: what follows may be the checkpoint, or `--`.
  command
      .add_option(
          "--set", options.set,
          "OPTION=VALUE: replaces an option of the recorded command line, for example serial=file:OUT")
      ->allow_extra_args(false);
}

Result<void> set_starting_options(const StartingOptions& options, RestoreOptions& restoring) {
  if (!options.qemu.empty()) restoring.qemu_executable = options.qemu;
  restoring.set = options.set;
  restoring.disks_as_they_are = options.disks_as_they_are;
  restoring.disks.temporary = options.disk_temporary;
  VMSIEVE_ASSIGN(restoring.disks.folder, disk_folder(options.disk_folder));
  return {};
}

}  // namespace vmsieve::cli
