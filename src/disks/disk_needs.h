// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "vmsieve/base/result.h"
#include "vmsieve/disks/tidy.h"
#include "vmsieve/image/disk_record.h"
#include "vmsieve/store/store.h"

/// Parts of tidy_disks(); DiskNeeds is asked by restores too.
namespace vmsieve::tidying {

/// Lists of paths, told apart as by same_file().
bool contains(const std::vector<std::string>& paths, const std::string& path);
void add(std::vector<std::string>& paths, const std::string& path);
void take_out(std::vector<std::string>& paths, const std::string& path);

/// Is the file one that the record gives up?
bool is_abandoned(const DiskRecord& record, const std::string& file);

/// kBusy: what has to wait, and why. Without a word: as it is to be, and nobody need be told.
Error waiting(std::string why);

/// Files of restored guests over a checkpoint's images that are there, or may be.
std::vector<std::string> living_children(const DiskRecord& record);

/// Who needs which image, by the records of a store and by what is on the host's disks. Paths are absolute;
/// each question is answered by how things are at the moment. From one thread.
class DiskNeeds {
 public:
  /// `store` must outlive it.
  explicit DiskNeeds(Store& store) : store_(store) {}

  /// Reads the records; what cannot be read is in unreadable().
  void read(const Store::DiskRecords& ids);
  /// Reads those of checkpoints that were not there before. kBusy when one cannot be read.
  Result<void> read_new();

  std::vector<DiskRecord>& checkpoints() { return records_; }
  /// Of what is no checkpoint any more, or never was. read_new() adds none, so references into it last.
  std::vector<DiskRecord>& forsaken() { return forsaken_; }
  const std::vector<UntidyDisk>& unreadable() const { return unreadable_; }

  /// Changes a record in the store, durably, and what is known of it here. Errors as of
  /// Store::change_disks().
  Result<void> change(DiskRecord& record, const std::function<void(DiskRecord&)>& make);

  /// Images over `image`, wherever this store has made them, or beside it.
  std::vector<std::string> all_over(const std::string& image) const;

  /// Why the content of `image` must stay as it is while what is in `overlay` goes into it; none: it need
  /// not. `holder` may have it open (-1: nobody).
  std::optional<std::string> why_needed(const std::string& image, const std::string& overlay,
                                        pid_t holder) const;

  /// Is the file, which may be gone, the disk of a checkpoint, or does an image stand on it?
  bool is_under_something(const std::string& image) const;

  /// Which checkpoint needs the file, which may be gone, or may: as its disk, under it, or, where a
  /// checkpoint is none any more, under what is left of it. None: nobody does.
  std::optional<std::string> who_may_need(const std::string& file) const;

  /// Overlays of checkpoints that are none any more over the file, each behind what it is over: what is left
  /// of a VM that was saved after it.
  std::vector<std::string> left_over(const std::string& file) const;

  /// Is an overlay that this store knows of in the image's chain, or may it be?
  bool is_over_overlay(const std::string& image) const;

  /// It stayed for the sake of its name, holds nothing, and nobody uses it.
  bool is_emptied(const std::string& overlay) const;

  /// The VM has left the overlay for one over it, or for a checkpoint's sake.
  bool is_superseded(const std::string& overlay) const;

  /// What was made over the overlay is over the image now: it was merged, and nobody came to note it.
  bool was_passed_over(const std::string& overlay, const std::string& image) const;

  /// What is over an overlay that is about to be merged, and of no checkpoint of this store (kBusy): of
  /// another store, whose checkpoint has the overlay as its disk, or somebody's own. `in_chain`: what a VM
  /// has over it, wherever that is.
  Result<void> check_known_over(const std::string& overlay, const std::string& in_chain = "") const;

  /// Nobody has written to what is about to be merged, and is not to have changed since a checkpoint (kBusy):
  /// neither to the image under the overlay, nor to an overlay that is the disk of others.
  Result<void> check_unchanged(const DiskRecord& record, const SavedDisk& disk,
                               const std::string& image) const;

 private:
  void read(const std::string& id, std::vector<DiskRecord>& into);

  Store& store_;
  std::vector<DiskRecord> records_;   ///< of checkpoints
  std::vector<DiskRecord> forsaken_;  ///< of what is none any more
  std::vector<UntidyDisk> unreadable_;
};

}  // namespace vmsieve::tidying
