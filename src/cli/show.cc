// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include <CLI/CLI.hpp>

#include "cli.h"
#include "inspection.h"
#include "saving.h"
#include "vmsieve/disks/image_file.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve::cli {

namespace {

/// As a shell takes it.
std::string quoted(const std::string& argument) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=,.:/@%";
  if (!argument.empty() && argument.find_first_not_of(kPlain) == std::string::npos) return argument;
  std::string out = "'";
  for (const char c : argument) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

struct ShownRun {
  u64 first_pfn = 0;
  u64 count = 0;
  std::string_view name;
};

std::string_view class_name(const PageRun& run) {
  switch (run.kind) {
    case RunKind::kFree: return "free";
    case RunKind::kFill: return run.fill == 0 ? "zero" : "fill";
    case RunKind::kData: return "saved";
  }
  return "unknown";
}

/// What the index says of every page frame that the guest saw as RAM.
std::vector<ShownRun> runs_by_pfn(const Manifest& manifest, const MemoryIndex& index) {
  std::vector<ShownRun> shown;
  for (const MappingRecord& mapping : manifest.mappings) {
    const u64 map_first = mapping.block_offset >> kPageShift;
    const u64 map_end = map_first + (mapping.bytes >> kPageShift);
    const u64 base_pfn = mapping.address >> kPageShift;
    for (const PageRun& run : index.blocks[mapping.block].runs) {
      const u64 first = std::max(run.first_page, map_first);
      const u64 end = std::min(run.first_page + run.pages, map_end);
      if (first >= end) continue;
      const u64 pfn = base_pfn + (first - map_first);
      ShownRun* last = shown.empty() ? nullptr : &shown.back();
      if (last != nullptr && last->name == class_name(run) && last->first_pfn + last->count == pfn) {
        last->count += end - first;
      } else {
        shown.push_back({pfn, end - first, class_name(run)});
      }
    }
  }
  return shown;
}

/// The record of a checkpoint's disks, with the images' chains as they are now; empty when it has none, or
/// none that can be read.
DiskRecord read_disks(const Store& store, const Manifest& m) {
  if (m.disks.empty()) return {};
  const auto text = store.read_disks(m.id);
  auto record = text ? decode_disks(*text) : Result<DiskRecord>{text.error()};
  if (!record) return {};
  std::erase_if(record->children, [](const std::string& child) { return !file_exists(child); });
  std::erase_if(record->abandoned, [](const PrintedFile& file) { return !file_exists(file.path); });
  for (SavedDisk& disk : record->disks) {
    if (auto chain = chain_of(disk.image)) disk.chain = std::move(*chain);
  }
  return *std::move(record);
}

void print_text(const Manifest& m, const DiskRecord& disks) {
  const auto pages = [](u64 count) { return human_bytes(count * kPageSize); };
  std::vector<std::vector<std::string>> rows = {
      {"checkpoint", m.id},
      {"created", m.created},
      {"VM", m.vm_name.empty() ? "unnamed" : m.vm_name},
      {"machine", fmt::format("{}, {} vCPUs, {}", m.machine_type, m.vcpus, m.accelerator)},
      {"QEMU", fmt::format("{} ({})", m.qemu_version, m.qemu_executable)},
      {"guest", m.was_running ? "was running" : "was stopped"},
      {"mode", m.mode},
      {"builds on", m.parent.empty() ? "no other" : m.parent},
      {"pause", human_ms(m.pause_ms)},
      {"total", human_ms(m.total_ms)},
      {"stored", fmt::format("{} ({})", human_bytes(m.stored_bytes), m.compression)},
      {"memory", human_bytes(m.guest_bytes)},
      {"  free", pages(m.pages.free)},
      {"  zero", pages(m.pages.zero)},
      {"  fill", pages(m.pages.fill)},
      {"  saved", pages(m.pages.saved)},
      {"kernel", m.introspection.kernel.empty() ? "none found" : "Linux " + m.introspection.kernel},
  };
  if (!m.introspection.reason.empty()) {
    rows.push_back({m.introspection.used ? "in part" : "in full", m.introspection.reason});
  }
  for (const SavedDisk& disk : disks.disks) {
    const std::string what = disk.snapshot.empty() ? "" : ", snapshot " + disk.snapshot;
    rows.push_back(
        {"disk", fmt::format("{} ({}{})", disks.way == DiskWay::kCopy ? "in the store" : disk.image,
                             human_bytes(disk.virtual_bytes), what)});
    for (std::size_t i = 1; disks.way != DiskWay::kCopy && i < disk.chain.size(); ++i)
      rows.push_back({"  over", disk.chain[i]});
    if (!disk.overlay.empty()) rows.push_back({"  the VM went on in", disk.overlay});
  }
  for (const std::string& child : disks.children) rows.push_back({"a restored guest's", child});
  for (const PrintedFile& file : disks.abandoned) rows.push_back({"goes with the checkpoint", file.path});
  for (const WritableDiskRecord& disk : m.writable_disks) {
    if (!m.disks.empty()) break;
    rows.push_back({"not included", fmt::format("disk {} ({})", disk.device, disk.file)});
  }
  std::fputs(table(rows, {}).c_str(), stdout);
  std::fputs("command line\n ", stdout);
  for (const std::string& argument : m.command_line) fmt::print(" {}", quoted(argument));
  std::puts("");
}

struct Options {
  std::string name;
  bool pages = false;
  bool memory = false;
  LookOptions look;
};

int show(const Options& options, const Common& common) {
  const bool pages = options.pages;
  const auto store = open_store(common, false);
  if (!store) return report(store.error(), common);
  const auto id = (*store)->resolve(options.name);
  if (!id) return report(id.error(), common);
  const auto reader = CheckpointReader::open(**store, *id);
  if (!reader) return report(reader.error(), common);
  const Manifest& manifest = (*reader)->manifest();
  std::optional<Inspection> memory;
  if (options.memory || options.look.pictures()) {
    auto seen = inspect_checkpoint(
        **reader, {.threads = 0, .pause = false, .classes = true, .largest = options.look.largest});
    if (!seen) return report(seen.error(), common);
    memory = *std::move(seen);
    if (const int status = write_pictures(*memory, options.look, common); status != kExitOk) return status;
  }
  std::vector<ShownRun> runs;
  if (pages) runs = runs_by_pfn(manifest, (*reader)->index());
  const DiskRecord disks = read_disks(**store, manifest);
  if (common.json) {
    Json json = manifest_json(manifest);
    if (!disks.disks.empty()) {
      json["disks"] = disks_json(disks);
      json["disks"]["children"] = disks.children;
      json["disks"]["abandoned"] = Json::array();
      for (const PrintedFile& file : disks.abandoned) json["disks"]["abandoned"].push_back(file.path);
      for (u64 i = 0; i < disks.disks.size(); ++i) json["disks"]["disks"][i]["chain"] = disks.disks[i].chain;
    }
    json["command_line"] = manifest.command_line;
    json["blocks"] = Json::array();
    for (const BlockRecord& block : manifest.blocks) {
      json["blocks"].push_back(
          {{"name", block.name}, {"bytes", block.used_bytes}, {"guest_ram", block.guest_ram}});
    }
    if (pages) {
      json["runs"] = Json::array();
      for (const ShownRun& run : runs) {
        json["runs"].push_back({{"first_pfn", run.first_pfn}, {"count", run.count}, {"class", run.name}});
      }
    }
    if (memory) json["memory"] = inspection_json(*memory, pages);
    print_json(json);
    return kExitOk;
  }
  print_text(manifest, disks);
  if (memory) {
    std::puts("");
    print_memory(*memory);
  }
  if (pages) {
    std::vector<std::vector<std::string>> rows = {{"FIRST PFN", "PAGES", "CLASS"}};
    for (const ShownRun& run : runs) {
      rows.push_back({fmt::format("{:#x}", run.first_pfn), std::to_string(run.count), std::string(run.name)});
    }
    std::fputs(table(rows, {0, 1}).c_str(), stdout);
  }
  return kExitOk;
}

}  // namespace

void add_show(CLI::App& app, int& status) {
  auto common = std::make_shared<Common>();
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("show", "show one checkpoint in detail");
  command->add_option("CHECKPOINT", options->name, "id, unique prefix, or VMNAME@latest")->required();
  command->add_flag("--pages", options->pages, "list every run of page frames with its class");
  command->add_flag("--memory", options->memory,
                    "look into the guest's memory: what it is used for, and by whom");
  add_look_options(*command, options->look);
  add_common(*command, common, true);
  command->callback([common, options, &status] { status = show(*options, *common); });
}

}  // namespace vmsieve::cli
