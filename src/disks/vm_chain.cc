// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/disks/vm_chain.h"

#include <algorithm>
#include <filesystem>

#include "vmsieve/disks/image_file.h"
#include "vmsieve/qemu/machine.h"
#include "vmsieve/qemu/qmp_wire.h"

namespace vmsieve {

namespace {

using Json = QmpClient::Json;

std::string absolute(const std::string& file, const std::string& working_directory) {
  const auto path = image_path(file);
  if (!path) return "";
  if (path->starts_with('/')) return *path;
  return (std::filesystem::path(working_directory) / *path).lexically_normal().string();
}

}  // namespace

/// As chain_of(); of a file that cannot be read it has the name, and `unknown` tells why it does not go on.
static std::vector<std::string> chain_as_far_as_known(const std::string& path, std::string& unknown) {
  std::vector<std::string> chain{path};
  while (chain.size() < kLongestChain) {
    const auto backing = backing_of(chain.back());
    if (!backing) {
      unknown = backing.error().message();
      return chain;
    }
    if (!*backing) return chain;
    chain.push_back(**backing);
  }
  unknown = fmt::format("the chain of backing files of {} does not end", path);
  return chain;
}

bool same_file(const std::string& a, const std::string& b) {
  if (a == b) return true;
  std::error_code error;
  return std::filesystem::equivalent(a, b, error) && !error;
}

Result<VmChains> VmChains::read(QmpClient& qmp, const std::string& working_directory) {
  VmChains chains;
  VMSIEVE_ASSIGN(const Json nodes, qmp.execute("query-named-block-nodes", Json{{"flat", true}}));
  VMSIEVE_ASSIGN(const Json drives, qmp.execute("query-block"));
  if (!nodes.is_array() || !drives.is_array())
    return Error(ErrorKind::kDamaged, "QEMU's answer about its block nodes lacks what it must hold");
  for (const Json& node : nodes) {
    chains.nodes_.push_back({json_string(node, "node-name"), json_string(node, "drv"),
                             absolute(json_string(node, "file"), working_directory)});
  }
  for (const Json& drive : drives) {
    const auto inserted = drive.is_object() ? drive.find("inserted") : drive.end();
    if (!drive.is_object() || inserted == drive.end() || !inserted->is_object()) continue;
    const std::string path = absolute(json_string(*inserted, "file"), working_directory);
    if (path.empty()) continue;
    Drive one{json_string(*inserted, "node-name"), {path}};
    // By the headers: QEMU opens what they say, and writes there what it has changed.
    if (json_u64(*inserted, "backing_file_depth").value_or(0) > 0) {
      one.chain = chain_as_far_as_known(path, chains.unknown_);
    }
    chains.drives_.push_back(std::move(one));
  }
  return chains;
}

const BlockNode* VmChains::image(const std::string& path) const {
  const BlockNode* found = nullptr;
  for (const BlockNode& node : nodes_) {
    if ((node.driver != "raw" && node.driver != "qcow2") || node.path.empty() || !same_file(node.path, path))
      continue;
    if (found != nullptr) return nullptr;
    found = &node;
  }
  return found != nullptr ? found : file(path);
}

const BlockNode* VmChains::file(const std::string& path) const {
  const auto it = std::ranges::find_if(nodes_, [&](const BlockNode& node) {
    return (node.driver == "file" || node.driver == "host_device") && same_file(node.path, path);
  });
  return it == nodes_.end() ? nullptr : &*it;
}

std::string VmChains::over(const std::string& path) const {
  for (const Drive& drive : drives_) {
    for (std::size_t i = 1; i < drive.chain.size(); ++i) {
      if (same_file(drive.chain[i], path)) return drive.chain[i - 1];
    }
  }
  return "";
}

std::string VmChains::file_node(const std::string& path) const {
  const BlockNode* const node = file(path);
  return node != nullptr ? node->name : "";
}

std::optional<std::string> VmChains::top_over(const std::string& path) const {
  for (const Drive& drive : drives_) {
    if (std::ranges::any_of(drive.chain, [&](const std::string& one) { return same_file(one, path); }))
      return drive.top;
  }
  return std::nullopt;
}

}  // namespace vmsieve
