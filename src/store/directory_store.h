// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "vmsieve/store/directory_io.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

/// A store in a directory: docs/format.md, "A store in a directory". Safe to use from several processes at
/// once; within a process, from several threads.
class DirectoryStore : public Store {
 public:
  /// See open_directory_store(). (Not called open: a literal for an object name would fit the bool.)
  static Result<std::unique_ptr<DirectoryStore>> open_path(const std::string& path, bool create);

  const std::string& name() const override { return root_->path; }
  Result<std::unique_ptr<CheckpointWriter>> begin() override;
  Result<Listing> list() const override;
  Result<Summaries> summaries() const override;
  Result<Manifest> manifest(const std::string& id) const override;
  Result<std::unique_ptr<ObjectReader>> open(const std::string& id, std::string_view object) const override;
  Result<std::string> read_hint(const std::string& id) const override;
  Result<void> write_hint(const std::string& id, std::string_view text) override;
  Result<std::string> object_path(const std::string& id, std::string_view object) const override;
  Result<std::string> read_disks(const std::string& id) const override;
  Result<void> change_disks(
      const std::string& id,
      const std::function<Result<std::string>(const std::string& text)>& change) override;
  Result<void> forget_disks(const std::string& id) override;
  Result<DiskRecords> disk_records() const override;
  Result<std::unique_ptr<DiskLock>> lock_disks() override;
  Result<Removal> remove(const std::string& id) override;
  Result<u64> sweep(Sweep what = Sweep::kAll) override;

  /// begin() with an id of the caller's choice: kBusy when it is taken.
  Result<std::unique_ptr<CheckpointWriter>> begin_as(const std::string& id);

 private:
  explicit DirectoryStore(std::shared_ptr<const Directory> root) : root_(std::move(root)) {}

  /// Shared with checkpoints being written, which may outlive the store.
  std::shared_ptr<const Directory> root_;
};

/// Parts of a directory store that its checkpoint writer needs too.
namespace directory_store {

inline constexpr const char* kMarker = "vmsieve-store";
inline constexpr std::string_view kMarkerText = "vmsieve-store 1\n";
inline constexpr const char* kLock = "lock";
inline constexpr const char* kCatalog = "catalog.hint";
inline constexpr const char* kCatalogTemporary = "catalog.hint.new";
inline constexpr const char* kCheckpoints = "checkpoints";
inline constexpr const char* kManifest = "manifest";
inline constexpr const char* kManifestTemporary = "manifest.new";
inline constexpr const char* kHint = "working-set.hint";
inline constexpr const char* kHintTemporary = "working-set.hint.new";
inline constexpr const char* kDisks = "disks";
inline constexpr const char* kDisksTemporary = "disks.new";
inline constexpr const char* kDisksLock = "disks.lock";
inline constexpr const char* kRetired = "retired";
inline constexpr const char* kPunched = "retired.punched";
inline constexpr const char* kPunchedTemporary = "retired.punched.new";
inline constexpr const char* kWriting = "writing";
inline constexpr const char* kMemory = "memory";

/// The store-wide lock: held for moments, so a long wait means that somebody is stuck (kBusy).
Result<FileLock> lock(const Directory& root);
/// The same if it is free; one that is not held when it is not.
Result<FileLock> try_lock(const Directory& root);

/// Is it the name of a marker being written?
bool is_half_written_marker(std::string_view name);

/// The directory holds the marker of a store of this version. kNotFound when there is none.
Result<void> check_marker(const Directory& root);

/// Opens the folder of a checkpoint's id, which is checked. kNotFound when there is none.
Result<Directory> open_checkpoint_folder(const Directory& root, const std::string& id);

/// The record of disks, and copies of them, over which there may be files of restored guests: they stay with
/// the record.
bool stays_with_disks(std::string_view name);

/// Reads and decodes the manifest in a checkpoint's folder, and checks that it is of this id.
Result<Manifest> read_manifest(const Directory& folder, const std::string& id);

/// Removes every file in a checkpoint's folder and then the folder; `checkpoints` is its parent. A record of
/// disks stays, and the folder with it. Fails on subdirectories, which are none of ours.
Result<void> remove_folder(const Directory& checkpoints, const std::string& id);

/// Makes `<id>/` with its locked `writing` file. kBusy when the id is taken.
Result<std::unique_ptr<CheckpointWriter>> begin_checkpoint(std::shared_ptr<const Directory> root,
                                                           const std::string& id);

}  // namespace directory_store
}  // namespace vmsieve
