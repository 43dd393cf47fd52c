// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/manifest.h"
#include "vmsieve/image/memory_index.h"
#include "vmsieve/store/checkpoint_reader.h"
#include "vmsieve/store/directory_store.h"
#include "vmsieve/store/memory_writer.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

namespace fs = std::filesystem;

/// An empty directory of its own, removed at the end.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

/// A file system in memory, mounted for a test; not mounted when the test may not mount.
class TemporaryMount {
 public:
  TemporaryMount(const fs::path& path, const std::string& options, const char* type = "tmpfs");
  ~TemporaryMount();
  TemporaryMount(const TemporaryMount&) = delete;
  TemporaryMount& operator=(const TemporaryMount&) = delete;
  bool mounted() const { return mounted_; }
  /// Remounts it read-only, or writable again.
  bool set_read_only(bool read_only);

 private:
  fs::path path_;
  bool mounted_ = false;
};

std::string read_file(const fs::path& path);
void write_file(const fs::path& path, std::string_view content);
std::vector<std::byte> bytes_of(std::string_view text);

/// What a page of the sample guest holds: the same for the same page, compressible or not.
std::vector<std::byte> sample_page(u64 page, bool compressible);

/// A small checkpoint: block "pc.ram" of 16 pages (free, zero, fill, 5 data pages in frames of every codec)
/// and block "vga.vram" of 2 pages (one data, one free with poison), and a device state.
struct Sample {
  std::string id;
  std::string created = "2026-01-31T12:34:56.789Z";
  std::string vm_name = "web";
  std::string device = "QEVM the state of all devices";
  /// When set, the data pages of vga.vram stand in this checkpoint's memory object.
  std::string ancestor = {};
  Frame ancestor_frame = {};
};

/// Runs of both blocks in the order of Sample.
std::vector<BlockIndex> sample_blocks(bool with_ancestor);
/// The content of page `page` of block `block` as a restore must give it.
std::vector<std::byte> sample_content(u64 block, u64 page);

/// Writes the sample's objects and returns the manifest to commit.
Result<Manifest> write_sample(CheckpointWriter& writer, const Sample& sample);
/// Makes and commits it.
Result<void> commit_sample(DirectoryStore& store, const Sample& sample);

/// Opens and verifies: "" or the error's message.
std::string fault_of(const Store& store, const std::string& id);

/// An open directory store in a temporary directory.
class StoreTest : public ::testing::Test {
 protected:
  static constexpr const char* kId = "00000000000000a1";
  static constexpr const char* kOther = "00000000000000b2";

  StoreTest();
  fs::path folder(const std::string& id = kId) const { return root_ / "checkpoints" / id; }
  void commit(const std::string& id = kId);

  TemporaryDirectory directory_;
  fs::path root_;
  std::unique_ptr<DirectoryStore> store_;
};

}  // namespace vmsieve
