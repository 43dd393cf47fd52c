// SPDX-License-Identifier: Apache-2.0
#include "inspection.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include <CLI/CLI.hpp>

#include "vmsieve/picture/memory_map.h"

namespace vmsieve::cli {

namespace {

std::string share(u64 bytes, u64 total) {
  if (total == 0) return "-";
  return fmt::format("{:.1f}%", 100.0 * static_cast<double>(bytes) / static_cast<double>(total));
}

Json classes_json(const PageClasses& classes) {
  Json json = Json::object();
  for (std::size_t i = 0; i < kPageClasses; ++i)
    json[std::string(to_string(static_cast<PageClass>(i)))] = classes.pages[i] * kPageSize;
  return json;
}

Result<void> write_file(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << bytes;
  file.close();
  if (!file) return make_error(ErrorKind::kIo, "cannot write the picture {}: {}", path, std::strerror(errno));
  return {};
}

}  // namespace

void add_look_options(CLI::App& command, LookOptions& options) {
  command.add_option("--svg", options.svg, "write a picture of the guest's memory to this file, as SVG");
  command.add_option("--png", options.png, "write it as PNG");
  command.add_option("--largest", options.largest, "how many processes and files to name")
      ->capture_default_str()
      ->check(CLI::Range(0U, 100000U));
}

Json inspection_json(const Inspection& seen, bool pages) {
  Json json = {{"vm", seen.vm_name},
               {"pid", seen.pid},
               {"qmp", seen.qmp_path},
               {"accelerator", seen.accelerator},
               {"running", seen.running},
               {"vcpus", seen.vcpus},
               {"kernel", seen.kernel},
               {"reason", seen.reason},
               {"exact", seen.exact},
               {"total_bytes", seen.total_bytes},
               {"free_bytes", seen.free_bytes},
               {"used_bytes", seen.used_bytes},
               {"free_pages",
                {{"buddy", seen.free_pages.buddy},
                 {"per_cpu", seen.free_pages.per_cpu},
                 {"hugetlb", seen.free_pages.hugetlb},
                 {"offline", seen.free_pages.offline}}},
               {"paused", seen.paused},
               {"pause_ms", seen.pause_ms},
               {"find_ms", seen.find_ms},
               {"classify_ms", seen.classify_ms},
               {"no_classes", seen.no_classes}};
  if (seen.classes) {
    json["classes"] = classes_json(*seen.classes);
    json["buffers_bytes"] = seen.classes->buffers * kPageSize;
    json["swap_cache_bytes"] = seen.classes->swap_cache * kPageSize;
    json["process_count"] = seen.process_count;
    json["processes"] = Json::array();
    for (const GuestProcess& process : seen.processes) {
      json["processes"].push_back({{"pid", process.pid},
                                   {"name", process.name},
                                   {"resident_bytes", process.resident_pages() * kPageSize},
                                   {"anonymous_bytes", process.anonymous_pages * kPageSize},
                                   {"file_bytes", process.file_pages * kPageSize},
                                   {"shared_bytes", process.shared_pages * kPageSize}});
    }
    json["files"] = Json::array();
    for (const CachedFile& file : seen.classes->files) {
      json["files"].push_back({{"name", file.name},
                               {"bytes", file.pages * kPageSize},
                               {"dirty_bytes", file.dirty * kPageSize},
                               {"shared", file.shared}});
    }
    json["zones"] = Json::array();
    for (const ZoneSpan& zone : seen.classes->zones) {
      json["zones"].push_back(
          {{"name", zone.name}, {"first_pfn", zone.span.first.value}, {"count", zone.span.count}});
    }
  }
  if (pages) {
    json["runs"] = Json::array();
    for (const PfnClassRun& run : seen.runs)
      json["runs"].push_back({{"first_pfn", run.first_pfn}, {"count", run.count}, {"class", run.name}});
  }
  return json;
}

void print_memory(const Inspection& seen) {
  std::vector<std::vector<std::string>> rows = {
      {"", "BYTES", "SHARE"},
      {"total", human_bytes(seen.total_bytes), ""},
      {"used", human_bytes(seen.used_bytes), share(seen.used_bytes, seen.total_bytes)},
      {"free", human_bytes(seen.free_bytes), share(seen.free_bytes, seen.total_bytes)}};
  if (seen.classes) {
    for (std::size_t i = 0; i < kPageClasses; ++i) {
      const u64 bytes = seen.classes->pages[i] * kPageSize;
      if (bytes == 0 || i == static_cast<std::size_t>(PageClass::kFree)) continue;
      rows.push_back({"  " + std::string(to_string(static_cast<PageClass>(i))), human_bytes(bytes),
                      share(bytes, seen.total_bytes)});
    }
  }
  std::fputs(table(rows, {1, 2}).c_str(), stdout);
  if (!seen.classes) {
    if (!seen.no_classes.empty())
      fmt::print("what the used memory is used for: not known, {}\n", seen.no_classes);
    return;
  }
  if (!seen.processes.empty()) {
    fmt::print("\nlargest of {} processes\n", seen.process_count);
    rows = {{"PID", "NAME", "RESIDENT", "ANONYMOUS", "FILES", "SHARED"}};
    for (const GuestProcess& p : seen.processes) {
      const auto bytes = [](u64 pages) { return human_bytes(pages * kPageSize); };
      rows.push_back({std::to_string(p.pid), p.name, bytes(p.resident_pages()), bytes(p.anonymous_pages),
                      bytes(p.file_pages), bytes(p.shared_pages)});
    }
    std::fputs(table(rows, {0, 2, 3, 4, 5}).c_str(), stdout);
  }
  if (!seen.classes->files.empty()) {
    std::puts("\nlargest cached files");
    rows = {{"BYTES", "DIRTY", "FILE"}};
    for (const CachedFile& file : seen.classes->files) {
      rows.push_back({human_bytes(file.pages * kPageSize), human_bytes(file.dirty * kPageSize),
                      file.name.empty() ? "?" : file.name});
    }
    std::fputs(table(rows, {0, 1}).c_str(), stdout);
  }
}

void print_runs(const std::vector<PfnClassRun>& runs) {
  std::vector<std::vector<std::string>> rows = {{"FIRST PFN", "PAGES", "CLASS"}};
  for (const PfnClassRun& run : runs)
    rows.push_back({fmt::format("{:#x}", run.first_pfn), std::to_string(run.count), run.name});
  std::fputs(table(rows, {0, 1}).c_str(), stdout);
}

int write_pictures(const Inspection& seen, const LookOptions& options, const Common& common) {
  if (!options.pictures()) return kExitOk;
  const auto picture = draw_memory_map(seen);
  if (!picture) return report(picture.error(), common);
  if (!options.svg.empty()) {
    if (const auto written = write_file(options.svg, to_svg(*picture)); !written)
      return report(written.error(), common);
  }
  if (!options.png.empty()) {
    const auto png = to_png(*picture);
    if (!png) return report(png.error(), common);
    if (const auto written = write_file(options.png, *png); !written) return report(written.error(), common);
  }
  return kExitOk;
}

}  // namespace vmsieve::cli
