// SPDX-License-Identifier: Apache-2.0
// The disks of a QEMU command line: QemuCommandLine::replace_image().
#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>

#include <nlohmann/json.hpp>

#include "vmsieve/image/json_fields.h"
#include "vmsieve/qemu/machine.h"
#include "vmsieve/qemu/rbd_image.h"
#include "vmsieve/restore/command_line.h"
#include "vmsieve/restore/obstacles.h"
#include "vmsieve/restore/option_parts.h"
#include "vmsieve/restore/option_table.h"

namespace vmsieve {

namespace {

using Json = nlohmann::json;

/// Options whose whole value is the path of an image.
constexpr auto kImageOptions =
    std::to_array<std::string_view>({"hda", "hdb", "hdc", "hdd", "sd", "mtdblock", "pflash", "fda", "fdb"});

/// Of a node, whatever its format: QEMU qapi/block-core.json, BlockdevOptions.
bool is_of_any_format(std::string_view key) {
  constexpr auto kKeys = std::to_array<std::string_view>(
      {"node-name", "discard", "detect-zeroes", "read-only", "auto-read-only", "force-share"});
  return std::ranges::find(kKeys, key) != kKeys.end() || key == "cache" || key.starts_with("cache.");
}

/// Of a file that a node is in.
bool is_of_a_file(std::string_view key) {
  constexpr auto kKeys = std::to_array<std::string_view>({"aio", "locking", "pr-manager"});
  return is_of_any_format(key) || std::ranges::find(kKeys, key) != kKeys.end();
}

/// Of a -drive: which image it is, and what only its format knows (raw, qcow2). What it is backed by is said
/// by the overlay; QEMU would take an option's word for it.
bool is_of_the_image(std::string_view key) {
  constexpr auto kKeys = std::to_array<std::string_view>(
      {"file", "format", "driver", "backing", "data-file", "encrypt", "offset", "size", "lazy-refcounts",
       "pass-discard-request", "pass-discard-snapshot", "pass-discard-other", "discard-no-unref",
       "overlap-check", "cache-size", "l2-cache-size", "l2-cache-entry-size", "refcount-cache-size",
       "cache-clean-interval"});
  return std::ranges::find(kKeys, key.substr(0, key.find('.'))) != kKeys.end();
}

bool is_file_driver(std::string_view driver) { return driver == "file" || driver == "host_device"; }

/// A `-blockdev` as JSON, nested: of both notations. Nothing when it is none, or deeper than any of QEMU's:
/// copying it recurses.
std::optional<Json> blockdev_of(const std::string& value) {
  constexpr unsigned kMaxLevels = 64;
  if (value.starts_with('{')) {
    if (json_deeper_than(value, kMaxLevels)) return std::nullopt;
    Json node = Json::parse(value, nullptr, /*allow_exceptions=*/false);
    if (!node.is_object()) return std::nullopt;
    return node;
  }
  Json node = Json::object();
  const OptionProperties properties{value, implied_key("blockdev")};
  for (const auto& [key, text] : properties.all()) {
    if (std::ranges::count(key, '.') >= kMaxLevels) return std::nullopt;
    Json* at = &node;
    std::size_t from = 0;
    for (std::size_t dot = key.find('.'); dot != std::string::npos; dot = key.find('.', from)) {
      Json& inner = (*at)[key.substr(from, dot - from)];
      if (!inner.is_object()) inner = Json::object();
      at = &inner;
      from = dot + 1;
    }
    if (!at->is_object()) return std::nullopt;
    (*at)[key.substr(from)] = text;
  }
  return node;
}

std::string text_of(const Json& node, const char* key) {
  const auto member = node.find(key);
  return member != node.end() && member->is_string() ? member->get<std::string>() : "";
}

void append_pairs(const Json& node, const std::string& prefix, std::string& out) {
  for (const auto& [key, value] : node.items()) {
    if (value.is_object()) {
      append_pairs(value, prefix + key + ".", out);
    } else {
      const std::string text = value.is_string()    ? value.get<std::string>()
                               : value.is_boolean() ? (value.get<bool>() ? "on" : "off")
                                                    : value.dump();
      out += fmt::format("{}{}{}={}", out.empty() ? "" : ",", prefix, key, escape_commas(text));
    }
  }
}

/// In the notation that `old` is in.
std::string written(const Json& node, const std::string& old) {
  if (old.starts_with('{')) return node.dump(-1, ' ', false, Json::error_handler_t::replace);
  std::string out;
  append_pairs(node, "", out);
  return out;
}

Json kept(const Json& node, bool (*is_kept)(std::string_view)) {
  Json out = Json::object();
  if (!node.is_object()) return out;
  for (const auto& [key, value] : node.items()) {
    if (is_kept(key)) out[key] = value;
  }
  return out;
}

class ImageReplacement {
 public:
  ImageReplacement(std::vector<QemuOption>& options, const std::string& overlay,
                   const std::string& working_directory)
      : options_(options), overlay_(overlay), directory_(working_directory) {}

  bool replace(const std::string& image) {
    for (QemuOption& option : options_) {
      if (replace_in(option, image)) return true;
    }
    return false;
  }

 private:
  bool is(const std::string& written_path, const std::string& image) const {
    if (const auto in_cluster = rbd_image(written_path)) return in_cluster->name == image;
    const auto path = image_path(written_path);
    if (!path) return false;
    return std::filesystem::path(resolve_path(*path, directory_)).lexically_normal() ==
           std::filesystem::path(image).lexically_normal();
  }

  /// Of a node that has no file's name.
  static bool is_node_of(const std::optional<Json>& node, const std::string& image) {
    if (!node) return false;
    const auto in_cluster = rbd_image_of_node(node->dump(-1, ' ', false, Json::error_handler_t::replace));
    return in_cluster && in_cluster->name == image;
  }

  bool replace_in(QemuOption& option, const std::string& image) {
    if (!option.value) return false;
    const bool path_option =
        option.name.empty() || std::ranges::find(kImageOptions, option.name) != kImageOptions.end();
    if (path_option) {
      if (!is(*option.value, image)) return false;
      *option.value = overlay_;
      return true;
    }
    if (option.name == "drive") return replace_in_drive(option, image);
    if (option.name == "blockdev") return replace_in_blockdev(option, image);
    return false;
  }

  bool replace_in_drive(QemuOption& option, const std::string& image) {
    const OptionProperties properties{*option.value, implied_key("drive")};
    const std::string file = properties.get("file").value_or(properties.get("file.filename").value_or(""));
    if (!is(file, image) && !is_node_of(blockdev_of(*option.value), image)) return false;
    std::vector<std::string> parts;
    for (const std::string& part : split_parts(*option.value)) {
      if (!is_of_the_image(part_key(part, false, ""))) parts.push_back(part);
    }
    parts.push_back("file=" + escape_commas(overlay_));
    parts.emplace_back("format=qcow2");
    option.value = join_parts(parts);
    return true;
  }

  bool replace_in_blockdev(QemuOption& option, const std::string& image) {
    const auto node = blockdev_of(*option.value);
    if (!node) return false;
    const std::string driver = text_of(*node, "driver");
    if (is_file_driver(driver) || driver == "rbd") {
      if (!is(text_of(*node, "filename"), image) && !is_node_of(node, image)) return false;
      replace_file_node(option, *node);
      return true;
    }
    const auto file = node->find("file");
    if (file == node->end() || !file->is_object()) return false;
    if (!is(text_of(*file, "filename"), image) && !is_node_of(*file, image)) return false;
    Json inner = kept(*file, is_of_a_file);
    inner["driver"] = "file";
    inner["filename"] = overlay_;
    Json outer = kept(*node, is_of_any_format);
    outer["driver"] = "qcow2";
    outer["file"] = std::move(inner);
    option.value = written(outer, *option.value);
    drop_node(text_of(*node, "backing"));
    return true;
  }

  /// A node by its name that was under the image, where nothing else refers to it: the overlay says itself
  /// what is under it, and QEMU would open that a second time, perhaps for writing.
  void drop_node(const std::string& name) {
    if (name.empty()) return;
    std::optional<Json> node;
    for (QemuOption& option : options_) {
      if (!option.value) continue;
      if (option.name != "blockdev") {
        const OptionProperties properties{*option.value, implied_key(option.name)};
        if (std::ranges::any_of(properties.all(), [&](const auto& pair) { return pair.second == name; }))
          return;
        continue;
      }
      const auto other = blockdev_of(*option.value);
      if (!other) continue;
      if (text_of(*other, "file") == name || text_of(*other, "backing") == name) return;
      if (text_of(*other, "node-name") == name) node = other;
    }
    if (!node) return;
    std::erase_if(options_, [&](const QemuOption& option) {
      const auto other =
          option.name == "blockdev" && option.value ? blockdev_of(*option.value) : std::nullopt;
      return other && text_of(*other, "node-name") == name;
    });
    drop_node(text_of(*node, "file"));
    drop_node(text_of(*node, "backing"));
  }

  /// A node of a file by itself: below one of a format, or what a device has.
  void replace_file_node(QemuOption& option, const Json& node) {
    const std::string name = text_of(node, "node-name");
    Json inner = kept(node, is_of_a_file);
    inner["driver"] = "file";
    inner["filename"] = overlay_;
    for (QemuOption& other : options_) {
      if (other.name != "blockdev" || !other.value || &other == &option) continue;
      const auto over = blockdev_of(*other.value);
      if (!over || text_of(*over, "file") != name || name.empty()) continue;
      Json outer = kept(*over, is_of_any_format);
      outer["driver"] = "qcow2";
      outer["file"] = name;
      other.value = written(outer, *other.value);
      option.value = written(inner, *option.value);
      drop_node(text_of(*over, "backing"));
      return;
    }
    Json outer = kept(node, is_of_any_format);
    inner.erase("node-name");
    outer["driver"] = "qcow2";
    outer["file"] = std::move(inner);
    option.value = written(outer, *option.value);
  }

  std::vector<QemuOption>& options_;
  const std::string& overlay_;
  const std::string& directory_;
};

}  // namespace

bool QemuCommandLine::replace_image(const std::vector<std::string>& chain, const std::string& overlay,
                                    const std::string& working_directory) {
  ImageReplacement replacement{options_, overlay, working_directory};
  return std::ranges::any_of(chain, [&](const std::string& image) { return replacement.replace(image); });
}

}  // namespace vmsieve
