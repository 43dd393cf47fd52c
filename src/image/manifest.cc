// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/image/manifest.h"

#include <sys/random.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <set>

#include "vmsieve/base/endian.h"
#include "vmsieve/image/framed_text.h"
#include "vmsieve/image/json_fields.h"
#include "vmsieve/image/memory_index.h"
#include "vmsieve/image/printable.h"

namespace vmsieve {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr TextFrame kFrame{"manifest", "vmsieve-manifest", Manifest::kFormatVersion};

double finite(double value) { return std::isfinite(value) ? value : 0; }

OrderedJson lists_of(const Manifest& manifest) {
  OrderedJson json;
  json["blocks"] = OrderedJson::array();
  for (const BlockRecord& block : manifest.blocks) {
    json["blocks"].push_back({{"name", json_text(block.name)},
                              {"used_bytes", block.used_bytes},
                              {"max_bytes", block.max_bytes},
                              {"host_page_bytes", block.host_page_bytes},
                              {"guest_ram", block.guest_ram}});
  }
  json["mappings"] = OrderedJson::array();
  for (const MappingRecord& mapping : manifest.mappings) {
    json["mappings"].push_back({{"address", mapping.address},
                                {"bytes", mapping.bytes},
                                {"block", mapping.block},
                                {"block_offset", mapping.block_offset}});
  }
  json["writable_disks"] = OrderedJson::array();
  for (const WritableDiskRecord& disk : manifest.writable_disks) {
    json["writable_disks"].push_back({{"device", json_text(disk.device)}, {"file", json_text(disk.file)}});
  }
  json["objects"] = OrderedJson::array();
  for (const ObjectRecord& object : manifest.objects) {
    json["objects"].push_back({{"name", json_text(object.name)},
                               {"bytes", object.bytes},
                               {"checksum", fmt::format("{:016x}", object.checksum)}});
  }
  return json;
}

bool is_timestamp(std::string_view text) {
  constexpr std::string_view kPattern = "dddd-dd-ddTdd:dd:dd.dddZ";
  return std::equal(text.begin(), text.end(), kPattern.begin(), kPattern.end(), [](char c, char pattern) {
    return pattern == 'd' ? c >= '0' && c <= '9' : c == pattern;
  });
}

void read_identity(const JsonFields& top, Manifest& manifest) {
  top.get("id", manifest.id);
  if (!is_checkpoint_id(manifest.id)) top.fail("id", "it is no checkpoint id");
  top.get("created", manifest.created);
  if (!is_timestamp(manifest.created)) top.fail("created", "it is no time like 2026-01-31T12:34:56.789Z");
  top.get("mode", manifest.mode);
  top.get("parent", manifest.parent);
  if (!manifest.parent.empty() && !is_checkpoint_id(manifest.parent)) {
    top.fail("parent", "it is no checkpoint id");
  }
  if (top.has("periodic")) top.get("periodic", manifest.periodic);
  if (top.has("frozen")) top.get("frozen", manifest.frozen);
  if (top.has("disks")) top.get("disks", manifest.disks);
  if (top.has("libvirt")) {
    const JsonFields libvirt = top.object("libvirt");
    libvirt.get("uri", manifest.libvirt.uri);
    libvirt.get("domain", manifest.libvirt.domain);
    libvirt.get("xml", manifest.libvirt.xml);
  }
  top.get("ancestors", manifest.ancestors);
  std::set<std::string_view> seen{manifest.id};
  for (const std::string& ancestor : manifest.ancestors) {
    if (!is_checkpoint_id(ancestor)) top.fail("ancestors", "an element is no checkpoint id");
    if (!seen.insert(ancestor).second) top.fail("ancestors", "an id is there twice, or is its own ancestor");
  }
}

void read_machine(const JsonFields& top, Manifest& manifest) {
  const JsonFields vm = top.object("vm");
  vm.get("name", manifest.vm_name);
  vm.get("pid", manifest.vm_pid);
  vm.get("was_running", manifest.was_running);
  vm.get("machine_type", manifest.machine_type);
  vm.get("accelerator", manifest.accelerator);
  vm.get("vcpus", manifest.vcpus);
  const JsonFields qemu = top.object("qemu");
  qemu.get("version", manifest.qemu_version);
  qemu.get("package", manifest.qemu_package);
  qemu.get("executable", manifest.qemu_executable);
  qemu.get("command_line", manifest.command_line);
  qemu.get("working_directory", manifest.working_directory);
}

void read_blocks(const JsonFields& top, Manifest& manifest) {
  std::set<std::string> names;
  top.list("blocks", [&](const JsonFields& fields) {
    BlockRecord block;
    fields.get("name", block.name);
    if (block.name.empty() || block.name.size() > kMaxBlockNameBytes)
      fields.fail("name", "it is not 1 to 255 bytes");
    if (!names.insert(block.name).second) fields.fail("name", "another block has it too");
    fields.get("used_bytes", block.used_bytes);
    fields.get("max_bytes", block.max_bytes);
    if (block.used_bytes > block.max_bytes) fields.fail("used_bytes", "it is more than max_bytes");
    if (block.max_bytes > kMaxGuestBytes) fields.fail("max_bytes", "it is more than 2^52");
    fields.get("host_page_bytes", block.host_page_bytes);
    if (block.host_page_bytes < kPageSize || !std::has_single_bit(block.host_page_bytes)) {
      fields.fail("host_page_bytes", "it is no power of two from 4096 on");
    }
    fields.get("guest_ram", block.guest_ram);
    manifest.blocks.push_back(std::move(block));
  });
}

void read_mappings(const JsonFields& top, Manifest& manifest) {
  u64 end = 0;
  top.list("mappings", [&](const JsonFields& fields) {
    MappingRecord mapping;
    fields.get("address", mapping.address);
    fields.get("bytes", mapping.bytes);
    fields.get("block", mapping.block);
    fields.get("block_offset", mapping.block_offset);
    if (mapping.address < end) fields.fail("address", "it is not behind the mapping before");
    if (mapping.bytes == 0 || mapping.bytes > ~u64{0} - mapping.address) {
      fields.fail("bytes", "it is 0, or goes beyond 64 bits");
    }
    if (mapping.block >= manifest.blocks.size()) return fields.fail("block", "there is no such block");
    const u64 block_bytes = manifest.blocks[mapping.block].max_bytes;
    if (mapping.block_offset > block_bytes || mapping.bytes > block_bytes - mapping.block_offset) {
      fields.fail("block_offset", "the mapping goes beyond the end of its block");
    }
    end = mapping.address + mapping.bytes;
    manifest.mappings.push_back(mapping);
  });
}

void read_objects(const JsonFields& top, Manifest& manifest) {
  std::set<std::string> names;
  top.list("objects", [&](const JsonFields& fields) {
    ObjectRecord object;
    fields.get("name", object.name);
    if (!is_object_name(object.name)) fields.fail("name", "it is no object's name");
    if (!names.insert(object.name).second) fields.fail("name", "another object has it too");
    fields.get("bytes", object.bytes);
    fields.get_hex("checksum", object.checksum);
    manifest.objects.push_back(std::move(object));
  });
  if (!names.contains("memory") || !names.contains("device")) {
    top.fail("objects", "memory or device is not among them");
  }
}

void read_rest(const JsonFields& top, Manifest& manifest) {
  top.list("writable_disks", [&](const JsonFields& fields) {
    WritableDiskRecord disk;
    fields.get("device", disk.device);
    fields.get("file", disk.file);
    manifest.writable_disks.push_back(std::move(disk));
  });
  const JsonFields introspection = top.object("introspection");
  introspection.get("used", manifest.introspection.used);
  introspection.get("kernel", manifest.introspection.kernel);
  introspection.get("reason", manifest.introspection.reason);
  introspection.get("classify_ms", manifest.introspection.classify_ms);
  if (introspection.has("free_pages")) {
    FreeKindCounts& counts = manifest.introspection.free_pages;
    const JsonFields free_pages = introspection.object("free_pages");
    free_pages.get("buddy", counts.buddy);
    free_pages.get("per_cpu", counts.per_cpu);
    free_pages.get("hugetlb", counts.hugetlb);
    free_pages.get("offline", counts.offline);
  }
  if (introspection.has("vmcoreinfo")) {
    const JsonFields vmcoreinfo = introspection.object("vmcoreinfo");
    vmcoreinfo.get("text", manifest.introspection.vmcoreinfo);
    vmcoreinfo.get("address", manifest.introspection.vmcoreinfo_address);
  }
  const JsonFields pages = top.object("pages");
  pages.get("total", manifest.pages.total);
  pages.get("free", manifest.pages.free);
  pages.get("zero", manifest.pages.zero);
  pages.get("fill", manifest.pages.fill);
  pages.get("saved", manifest.pages.saved);
  const JsonFields times = top.object("times");
  times.get("pause_ms", manifest.pause_ms);
  times.get("total_ms", manifest.total_ms);
  top.get("guest_bytes", manifest.guest_bytes);
  top.get("stored_bytes", manifest.stored_bytes);
  top.get("compression", manifest.compression);
}

}  // namespace

std::string encode_manifest(const Manifest& manifest) {
  OrderedJson lists = lists_of(manifest);
  OrderedJson json;
  json["id"] = json_text(manifest.id);
  json["created"] = json_text(manifest.created);
  json["mode"] = json_text(manifest.mode);
  json["parent"] = json_text(manifest.parent);
  if (manifest.periodic) json["periodic"] = true;
  if (manifest.frozen) json["frozen"] = true;
  if (!manifest.disks.empty()) json["disks"] = json_text(manifest.disks);
  if (!manifest.libvirt.xml.empty()) {
    json["libvirt"] = {{"uri", json_text(manifest.libvirt.uri)},
                       {"domain", json_text(manifest.libvirt.domain)},
                       {"xml", json_text(manifest.libvirt.xml)}};
  }
  json["ancestors"] = json_texts(manifest.ancestors);
  json["required_features"] = json_texts(manifest.required_features);
  json["vm"] = {{"name", json_text(manifest.vm_name)},
                {"pid", manifest.vm_pid},
                {"was_running", manifest.was_running},
                {"machine_type", json_text(manifest.machine_type)},
                {"accelerator", json_text(manifest.accelerator)},
                {"vcpus", manifest.vcpus}};
  json["qemu"] = {{"version", json_text(manifest.qemu_version)},
                  {"package", json_text(manifest.qemu_package)},
                  {"executable", json_text(manifest.qemu_executable)},
                  {"command_line", json_texts(manifest.command_line)},
                  {"working_directory", json_text(manifest.working_directory)}};
  json["blocks"] = std::move(lists["blocks"]);
  json["mappings"] = std::move(lists["mappings"]);
  json["writable_disks"] = std::move(lists["writable_disks"]);
  json["introspection"] = {{"used", manifest.introspection.used},
                           {"kernel", json_text(manifest.introspection.kernel)},
                           {"reason", json_text(manifest.introspection.reason)},
                           {"classify_ms", finite(manifest.introspection.classify_ms)}};
  const FreeKindCounts& counts = manifest.introspection.free_pages;
  if (counts.buddy != 0 || counts.per_cpu != 0 || counts.hugetlb != 0 || counts.offline != 0) {
    json["introspection"]["free_pages"] = {{"buddy", counts.buddy},
                                           {"per_cpu", counts.per_cpu},
                                           {"hugetlb", counts.hugetlb},
                                           {"offline", counts.offline}};
  }
  if (!manifest.introspection.vmcoreinfo.empty()) {
    json["introspection"]["vmcoreinfo"] = {{"address", manifest.introspection.vmcoreinfo_address},
                                           {"text", json_text(manifest.introspection.vmcoreinfo)}};
  }
  json["pages"] = {{"total", manifest.pages.total},
                   {"free", manifest.pages.free},
                   {"zero", manifest.pages.zero},
                   {"fill", manifest.pages.fill},
                   {"saved", manifest.pages.saved}};
  json["times"] = {{"pause_ms", finite(manifest.pause_ms)}, {"total_ms", finite(manifest.total_ms)}};
  json["guest_bytes"] = manifest.guest_bytes;
  json["stored_bytes"] = manifest.stored_bytes;
  json["compression"] = json_text(manifest.compression);
  json["objects"] = std::move(lists["objects"]);
  const std::string body = json.dump(1) + "\n";
  return frame_text(kFrame, body);
}

Result<Manifest> decode_manifest(std::string_view text) {
  if (text.size() > Manifest::kMaxBytes) {
    return make_error(ErrorKind::kDamaged, "manifest: its {} bytes are more than the {} allowed", text.size(),
                      Manifest::kMaxBytes);
  }
  VMSIEVE_ASSIGN(const nlohmann::json json, parse_framed_json(kFrame, text));

  std::optional<Error> error;
  const JsonFields top{json, "", error};
  Manifest manifest;
  top.get("required_features", manifest.required_features);
  if (error) return *error;
  if (!manifest.required_features.empty()) {
    return make_error(ErrorKind::kUnsupported, "manifest: it requires the feature '{}', which is unknown",
                      printable(manifest.required_features.front()));
  }
  read_identity(top, manifest);
  read_machine(top, manifest);
  read_blocks(top, manifest);
  read_mappings(top, manifest);
  read_objects(top, manifest);
  read_rest(top, manifest);
  if (error) return *error;
  return manifest;
}

bool is_checkpoint_id(std::string_view id) { return parse_hex(id, 16).has_value(); }

bool is_object_name(std::string_view name) {
  constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyz";
  constexpr std::string_view kCharacters = "abcdefghijklmnopqrstuvwxyz0123456789-";
  return !name.empty() && name.size() <= 32 && kLetters.find(name[0]) != std::string_view::npos &&
         name.find_first_not_of(kCharacters) == std::string_view::npos && name != "manifest" &&
         name != "retired" && name != "writing" && name != "disks";
}

Result<std::string> new_checkpoint_id() {
  u64 number = 0;
  ssize_t size = 0;
  do {
    size = ::getrandom(&number, sizeof number, 0);
  } while (size < 0 && errno == EINTR);
  if (size != sizeof number) return errno_error(errno, "cannot draw a random checkpoint id");
  return fmt::format("{:016x}", number);
}

}  // namespace vmsieve
