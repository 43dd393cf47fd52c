// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/rbd_image.h"

#include <algorithm>
#include <array>
#include <string_view>

#include <nlohmann/json.hpp>

#include "vmsieve/image/json_fields.h"

namespace vmsieve {

namespace {

using Json = nlohmann::json;

constexpr std::string_view kProtocol = "rbd:";
constexpr unsigned kMaxLevels = 32;

/// Nothing when it is none, or deeper than any of QEMU's: copying it recurses.
std::optional<Json> object_in(std::string_view text) {
  if (json_deeper_than(text, kMaxLevels)) return std::nullopt;
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return std::nullopt;
  return json;
}

std::string text_of(const Json& node, const char* key) {
  const auto it = node.find(key);
  return it != node.end() && it->is_string() ? it->get<std::string>() : "";
}

std::string written(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

/// Up to an unescaped `end`, which goes too; all of it where there is none. As qemu_rbd_next_tok().
std::string next_word(std::string_view& rest, char end) {
  std::string word;
  std::size_t at = 0;
  for (; at < rest.size() && rest[at] != end; ++at) {
    if (rest[at] == '\\' && at + 1 < rest.size()) ++at;
    word += rest[at];
  }
  rest.remove_prefix(std::min(at + 1, rest.size()));
  return word;
}

/// "POOL/[NAMESPACE/]IMAGE[@SNAPSHOT][:KEY=VALUE...]", as qemu_rbd_parse_filename().
Json node_in(std::string_view name) {
  Json node{{"driver", "rbd"}};
  node["pool"] = next_word(name, '/');
  const bool has_snapshot = name.find('@') != std::string_view::npos;
  std::string image = next_word(name, has_snapshot ? '@' : ':');
  if (has_snapshot) node["snapshot"] = next_word(name, ':');
  if (const std::size_t slash = image.find('/'); slash != std::string::npos) {
    node["namespace"] = image.substr(0, slash);
    image.erase(0, slash + 1);
  }
  node["image"] = image;
  Json others = Json::array();
  while (!name.empty()) {
    const std::string key = next_word(name, '=');
    const std::string value = next_word(name, ':');
    if (key == "id") {
      node["user"] = value;
    } else if (key == "conf") {
      node["conf"] = value;
    } else {
      others.push_back(key);
      others.push_back(value);
    }
  }
  if (!others.empty()) node["=keyvalue-pairs"] = written(others);
  return node;
}

std::optional<RbdImage> image_of(const Json& node, bool is_only_part) {
  if (text_of(node, "driver") != "rbd") return std::nullopt;
  RbdImage image;
  image.name = std::string(kProtocol) + text_of(node, "pool");
  if (const std::string space = text_of(node, "namespace"); !space.empty()) image.name += "/" + space;
  image.name += "/" + text_of(node, "image");
  const auto is_strange = [](unsigned char c) { return c < ' ' || c >= 0x7f; };
  if (text_of(node, "pool").empty() || text_of(node, "image").empty() ||
      std::ranges::any_of(image.name, is_strange))
    return std::nullopt;
  image.has_secret = node.contains("key-secret") || node.contains("encrypt");
  image.is_snapshot = !text_of(node, "snapshot").empty();
  image.is_only_part = is_only_part;
  // What is of the node in that QEMU alone goes: its name, its cache.
  constexpr auto kKept = std::to_array<const char*>({"driver", "pool", "namespace", "image", "conf", "user",
                                                     "auth-client-required", "server", "=keyvalue-pairs"});
  Json kept = Json::object();
  for (const char* key : kKept) {
    const auto it = node.find(key);
    const bool says_nothing = it == node.end() || (it->is_string() && text_of(node, key).empty());
    if (!says_nothing) kept[key] = *it;
  }
  image.options = written(kept);
  return image;
}

std::optional<RbdImage> innermost(const Json& whole) {
  const Json* node = &whole;
  bool is_only_part = false;
  for (unsigned level = 0; level < kMaxLevels; ++level) {
    is_only_part = is_only_part || node->contains("offset") || node->contains("size");
    const auto inner = node->find("file");
    if (inner == node->end() || !inner->is_object()) break;
    node = &*inner;
  }
  return image_of(*node, is_only_part);
}

}  // namespace

std::optional<RbdImage> rbd_image(const std::string& file) {
  if (file.starts_with("json:")) return rbd_image_of_node(file.substr(5));
  if (!file.starts_with(kProtocol)) return std::nullopt;
  return image_of(node_in(std::string_view{file}.substr(kProtocol.size())), false);
}

std::optional<RbdImage> rbd_image_of_node(const std::string& json) {
  const auto node = object_in(json);
  return node ? innermost(*node) : std::nullopt;
}

Result<std::string> rbd_filename(const std::string& options, const std::string& snapshot) {
  auto node = object_in(options);
  if (!node || text_of(*node, "driver") != "rbd")
    return Error(ErrorKind::kDamaged, "what is said of an image in a Ceph cluster is no node of QEMU's");
  if (!snapshot.empty()) (*node)["snapshot"] = snapshot;
  const Json whole{{"driver", "raw"}, {"file", std::move(*node)}};
  return "json:" + written(whole);
}

}  // namespace vmsieve
