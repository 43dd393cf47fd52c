// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/image/disk_record.h"

#include <algorithm>
#include <array>

#include "vmsieve/image/framed_text.h"
#include "vmsieve/image/json_fields.h"
#include "vmsieve/image/manifest.h"

namespace vmsieve {

namespace {

constexpr TextFrame kDisksFrame{"the record of the disks", "vmsieve-disks", 1};
constexpr std::array kWays{DiskWay::kSnapshot, DiskWay::kInternal, DiskWay::kCopy};

bool is_path(const std::string& path) {
  return path.starts_with('/') && path.find('\0') == std::string::npos;
}

bool is_in_a_cluster(const std::string& name) {
  return name.starts_with("rbd:") && name.find('\0') == std::string::npos;
}

void get_paths(const JsonFields& fields, const char* name, std::vector<std::string>& paths) {
  fields.get(name, paths);
  if (!std::ranges::all_of(paths, is_path)) fields.fail(name, "an element is no absolute path");
}

FilePrint read_print(const JsonFields& fields) {
  FilePrint print;
  fields.get("bytes", print.bytes);
  fields.get("modified_ns", print.modified_ns);
  fields.get_hex("sample", print.sample);
  return print;
}

PrintedFile read_printed(const JsonFields& fields) {
  PrintedFile file;
  fields.get("path", file.path);
  if (!is_path(file.path)) fields.fail("path", "it is no absolute path");
  file.print = read_print(fields);
  return file;
}

nlohmann::ordered_json printed_files(const std::vector<PrintedFile>& files) {
  auto json = nlohmann::ordered_json::array();
  for (const PrintedFile& file : files) {
    json.push_back({{"path", json_text(file.path)},
                    {"bytes", file.print.bytes},
                    {"modified_ns", file.print.modified_ns},
                    {"sample", fmt::format("{:016x}", file.print.sample)}});
  }
  return json;
}

SavedDisk read_disk(const JsonFields& fields, DiskWay way) {
  SavedDisk disk;
  fields.get("device", disk.device);
  fields.get("qdev", disk.qdev);
  fields.get("image", disk.image);
  if (fields.has("source")) fields.get("source", disk.source);
  const bool in_a_cluster = way == DiskWay::kInternal && !disk.source.empty();
  if (in_a_cluster ? !is_in_a_cluster(disk.image) : !is_path(disk.image))
    fields.fail("image", "it is no absolute path");
  fields.get("format", disk.format);
  if (disk.format != "raw" && disk.format != "qcow2") fields.fail("format", "it is neither raw nor qcow2");
  fields.get("virtual_bytes", disk.virtual_bytes);
  disk.print = read_print(fields);
  if (fields.has("below"))
    fields.list("below", [&](const JsonFields& file) { disk.below.push_back(read_printed(file)); });
  fields.get("overlay", disk.overlay);
  const bool has_overlay = way == DiskWay::kSnapshot || !disk.overlay.empty();
  if (has_overlay && !is_path(disk.overlay)) fields.fail("overlay", "it is no absolute path");
  fields.get("snapshot", disk.snapshot);
  if (way == DiskWay::kInternal && disk.snapshot.empty()) fields.fail("snapshot", "it is empty");
  if (in_a_cluster) {
    fields.get("chain", disk.chain);
    if (!std::ranges::all_of(disk.chain, is_in_a_cluster))
      fields.fail("chain", "an element is in no cluster");
  } else {
    get_paths(fields, "chain", disk.chain);
  }
  return disk;
}

}  // namespace

std::string_view to_string(DiskWay way) {
  switch (way) {
    case DiskWay::kSnapshot: return "snapshot";
    case DiskWay::kInternal: return "internal";
    case DiskWay::kCopy: return "copy";
  }
  return "unknown";
}

std::string disk_object(u64 number) { return fmt::format("disk-{}", number); }

std::string encode_disks(const DiskRecord& record) {
  nlohmann::ordered_json json;
  json["checkpoint"] = json_text(record.checkpoint);
  json["way"] = to_string(record.way);
  json["disks"] = nlohmann::ordered_json::array();
  for (const SavedDisk& disk : record.disks) {
    json["disks"].push_back({{"device", json_text(disk.device)},
                             {"qdev", json_text(disk.qdev)},
                             {"image", json_text(disk.image)},
                             {"format", json_text(disk.format)},
                             {"virtual_bytes", disk.virtual_bytes},
                             {"bytes", disk.print.bytes},
                             {"modified_ns", disk.print.modified_ns},
                             {"sample", fmt::format("{:016x}", disk.print.sample)},
                             {"below", printed_files(disk.below)},
                             {"overlay", json_text(disk.overlay)},
                             {"snapshot", json_text(disk.snapshot)},
                             {"chain", json_texts(disk.chain)}});
    if (!disk.source.empty()) json["disks"].back()["source"] = json_text(disk.source);
  }
  json["children"] = json_texts(record.children);
  json["abandoned"] = printed_files(record.abandoned);
  json["merged"] = json_texts(record.merged);
  json["renamed"] = json_texts(record.renamed);
  json["begun"] = json_texts(record.begun);
  json["emptied"] = json_texts(record.emptied);
  json["leaving"] = json_texts(record.leaving);
  return frame_text(kDisksFrame, json.dump(1) + "\n");
}

Result<DiskRecord> decode_disks(std::string_view text) {
  if (text.size() > DiskRecord::kMaxBytes)
    return make_error(ErrorKind::kDamaged, "the record of the disks has {} bytes, more than the {} allowed",
                      text.size(), DiskRecord::kMaxBytes);
  VMSIEVE_ASSIGN(const nlohmann::json json, parse_framed_json(kDisksFrame, text));
  std::optional<Error> error;
  const JsonFields top{json, "", error};
  DiskRecord record;
  top.get("checkpoint", record.checkpoint);
  if (!is_checkpoint_id(record.checkpoint)) top.fail("checkpoint", "it is no checkpoint id");
  std::string way;
  top.get("way", way);
  const auto* known = std::ranges::find(kWays, way, [](DiskWay w) { return to_string(w); });
  if (known == kWays.end()) {
    top.fail("way", "it is unknown");
  } else {
    record.way = *known;
  }
  top.list("disks", [&](const JsonFields& fields) { record.disks.push_back(read_disk(fields, record.way)); });
  get_paths(top, "children", record.children);
  if (top.has("abandoned"))
    top.list("abandoned", [&](const JsonFields& file) { record.abandoned.push_back(read_printed(file)); });
  get_paths(top, "merged", record.merged);
  get_paths(top, "renamed", record.renamed);
  get_paths(top, "begun", record.begun);
  get_paths(top, "emptied", record.emptied);
  get_paths(top, "leaving", record.leaving);
  if (error) return error->with_context("the record of the disks");
  return record;
}

}  // namespace vmsieve
