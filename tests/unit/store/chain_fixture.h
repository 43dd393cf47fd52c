// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "unit/store/store_fixture.h"

namespace vmsieve {

/// Checkpoints that share frames. Each is of one block of kFrames frames; a checkpoint writes some of them
/// anew and takes the others over from its parent's index.
class ChainTest : public StoreTest {
 protected:
  static constexpr u64 kFrames = 12;
  static constexpr u64 kFramePages = 8;
  static constexpr const char* kA = "00000000000000a1";
  static constexpr const char* kB = "00000000000000b2";
  static constexpr const char* kC = "00000000000000c3";
  static constexpr const char* kD = "00000000000000d4";

  /// Writes the objects of `id`: the frames in `fresh` its own, the others `parent`'s. Returns the manifest.
  Result<Manifest> write_link(CheckpointWriter& writer, const std::string& parent,
                              const std::set<u64>& fresh);
  /// Writes and commits.
  void commit_link(const std::string& id, const std::string& parent, const std::set<u64>& fresh);
  /// A with all frames; B, on it, with 0 to 5; C on B with 4 to 8; D on B as well, with 0, 1 and 8 to 11.
  void commit_family();

  /// It verifies, and every frame holds what was written.
  void expect_whole(const std::string& id);
  std::vector<std::string> listed() const;
  /// Bytes that the memory object takes on the disk.
  u64 stored(const std::string& id) const;
  /// remove() and its result: who needs something of it.
  std::vector<std::string> remove(const std::string& id);
  u64 sweep();
  /// Can the file system of the store make holes?
  bool can_punch() const;
  static bool compressible(u64 frame) { return frame % 4 == 3; }

  /// Whose frame it is that a checkpoint shows, by checkpoint and frame.
  std::map<std::string, std::vector<std::string>> owners_;
};

}  // namespace vmsieve
