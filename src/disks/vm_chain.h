// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/qemu/qmp.h"

namespace vmsieve {

/// A named node of a running QEMU's block graph (`query-named-block-nodes`).
struct BlockNode {
  std::string name;
  std::string driver;
  std::string path;  ///< of the file that it is in; empty when it is in none
};

/// The block nodes of a QEMU, and on what its drives stand.
class VmChains {
 public:
  static Result<VmChains> read(QmpClient& qmp, const std::string& working_directory);

  /// The node of format raw or qcow2 in this file, or, where there is none, that of the file itself; none
  /// when there is none, or more than one.
  const BlockNode* image(const std::string& path) const;
  /// The node of driver file or host_device in this file.
  const BlockNode* file(const std::string& path) const;
  /// The file right over this one in the chain of a drive; empty when it is in none, or is the topmost.
  std::string over(const std::string& path) const;
  /// Its name; empty when there is none.
  std::string file_node(const std::string& path) const;
  /// The topmost node of a drive whose topmost image is this file, or is over it.
  std::optional<std::string> top_over(const std::string& path) const;

  const std::vector<BlockNode>& nodes() const { return nodes_; }

  /// Why the chain of a drive may go on further than is known: a file of it is not where its name is, or
  /// cannot be read. Empty: all are known. What is in no known part may be in use all the same.
  const std::string& unknown() const { return unknown_; }

 private:
  std::vector<BlockNode> nodes_;
  struct Drive {
    std::string top;
    std::vector<std::string> chain;  ///< paths, the topmost first
  };
  std::vector<Drive> drives_;
  std::string unknown_;
};

/// As is_same_file(2) would say, or, of files that are gone, by their names.
bool same_file(const std::string& a, const std::string& b);

}  // namespace vmsieve
