// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/image/manifest.h"

namespace vmsieve {

/// Writes one object from its first byte to its last. Not thread-safe. An object that is destroyed
/// before finish() never becomes part of a checkpoint.
class ObjectWriter {
 public:
  virtual ~ObjectWriter() = default;
  virtual Result<void> append(std::span<const std::byte> bytes) = 0;
  /// The same of whole pages that begin at a multiple of kPageSize in memory, and that may be written from
  /// where they are: they must stay unchanged until `release` is called. It is called exactly once, also when
  /// this fails: before this returns, or from a later call of append(), append_in_place(), settle_one() or
  /// finish(), on whichever thread calls that. Whoever ends before finish() calls settle_one() until it
  /// returns false.
  virtual Result<void> append_in_place(std::span<const std::byte> bytes, std::function<void()> release) {
    auto appended = append(bytes);
    release();
    return appended;
  }
  /// Waits until one of the writes that are under way has ended; false when there is none. An error of it is
  /// told by the next other call.
  virtual bool settle_one() { return false; }
  /// Bytes appended so far.
  virtual u64 size() const = 0;
  /// Makes the bytes durable.
  virtual Result<void> finish() = 0;
};

/// Reads an object at any offset. Thread-safe.
class ObjectReader {
 public:
  virtual ~ObjectReader() = default;
  virtual u64 size() const = 0;
  /// Exactly out.size() bytes at `offset`; kDamaged when the object is shorter.
  virtual Result<void> read(u64 offset, std::span<std::byte> out) const = 0;
  /// Tells that most of the object will be read, once: what is so large that it would push others out of the
  /// host's page cache, and is not in it, is then read around it.
  virtual void expect_one_pass() const {}
};

/// A checkpoint being written. Until commit() returns ok it does not exist for anybody else;
/// destroyed before that, its files are removed. If the process dies, the next sweep() removes them.
class CheckpointWriter {
 public:
  virtual ~CheckpointWriter() = default;
  virtual const std::string& id() const = 0;
  /// `name`: "memory", "device". Each once.
  virtual Result<std::unique_ptr<ObjectWriter>> create(std::string_view name) = 0;
  /// An object that somebody else writes, as an empty file, open for reading and writing; kUnsupported where
  /// objects are no files. finish_file(), called when it is written, tells what the manifest says of it.
  virtual Result<UniqueFd> create_file(std::string_view name) = 0;
  virtual Result<ObjectRecord> finish_file(std::string_view name) = 0;
  /// The record of the checkpoint's disks (image/disk_record.h), durable at once, in place of what was noted
  /// before. It stays when the checkpoint does not come to be, until Store::forget_disks().
  virtual Result<void> note_disks(std::string_view text) = 0;
  /// Writes the manifest, durable, last. All objects must have been finished. A checkpoint with ancestors
  /// must have a parent that is still there and needs no fewer: kNotFound when it, or an ancestor, is gone.
  virtual Result<void> commit(const Manifest& manifest) = 0;
};

/// What list() says of one checkpoint whose manifest cannot be used.
struct DamagedCheckpoint {
  std::string id;
  Error error;
};

/// What a manifest says, as far as it is needed to choose among checkpoints.
struct CheckpointSummary {
  std::string id;
  std::string created;  ///< this and the following as in Manifest
  std::string mode;
  std::string parent;
  std::string vm_name;
  std::string kernel;  ///< the guest's that was looked into; empty when none was
  double pause_ms = 0;
  u64 guest_bytes = 0;
  u64 stored_bytes = 0;

  static CheckpointSummary of(const Manifest& manifest);
  friend bool operator==(const CheckpointSummary&, const CheckpointSummary&) = default;
};

template <typename Checkpoint>
struct ListingOf {
  std::vector<Checkpoint> checkpoints;  ///< oldest first
  std::vector<DamagedCheckpoint> damaged;
  u64 retired = 0;        ///< removed checkpoints of which something is kept for others
  u64 retired_bytes = 0;  ///< what they take on the disk
};
using Listing = ListingOf<Manifest>;
using Summaries = ListingOf<CheckpointSummary>;

/// What remove() left in the store.
struct Removal {
  /// The checkpoints that need frames in the memory object of the removed one, which stays for them in part;
  /// empty when all of it is gone.
  std::vector<std::string> needed_by;
};

/// What is left over.
enum class Sweep {
  kAll,
  /// Not what has neither a manifest nor a sign of its writer: most likely an interrupted removal's, but a
  /// checkpoint that is being copied to the store by other means looks the same. For who only reads.
  kSafe,
};

/// A set of checkpoints: write-once objects with names, docs/format.md.
class Store {
 public:
  virtual ~Store() = default;
  /// For messages: the path.
  virtual const std::string& name() const = 0;

  virtual Result<std::unique_ptr<CheckpointWriter>> begin() = 0;
  virtual Result<Listing> list() const = 0;
  /// The same in short. A store may keep what it has found (docs/format.md, "The catalog") and read a
  /// manifest again only where something has changed: damage that changes no file's time or length is then
  /// left for whoever reads the manifest itself.
  virtual Result<Summaries> summaries() const = 0;
  virtual Result<Manifest> manifest(const std::string& id) const = 0;
  /// Of a removed checkpoint that others need, `memory` can still be opened, and nothing else.
  virtual Result<std::unique_ptr<ObjectReader>> open(const std::string& id,
                                                     std::string_view object) const = 0;
  /// The hint that was left with a checkpoint (WorkingSet): a text that is no part of it, and that may be
  /// lost or replaced at any time. kNotFound when there is none, kUnsupported where a store keeps none.
  virtual Result<std::string> read_hint(const std::string& id) const;
  virtual Result<void> write_hint(const std::string& id, std::string_view text);
  /// The absolute path of an object, for programs that read it as a file. kUnsupported where it is none.
  virtual Result<std::string> object_path(const std::string& id, std::string_view object) const = 0;
  /// The record of a checkpoint's disks, also when the checkpoint has been removed or never came to be.
  /// kNotFound when there is none.
  virtual Result<std::string> read_disks(const std::string& id) const = 0;
  /// Replaces it by what `change` makes of it; no other process does so in between. Durable.
  virtual Result<void> change_disks(
      const std::string& id, const std::function<Result<std::string>(const std::string& text)>& change) = 0;
  /// Removes the record, for good.
  virtual Result<void> forget_disks(const std::string& id) = 0;
  /// All that have a record of disks: `forsaken` ones are no checkpoint, and nobody writes them any more.
  struct DiskRecords {
    std::vector<std::string> checkpoints;
    std::vector<std::string> forsaken;
  };
  virtual Result<DiskRecords> disk_records() const = 0;
  /// Held by whoever puts disks back together: dropped when the object is destroyed. kBusy when another
  /// process does so.
  class DiskLock {
   public:
    virtual ~DiskLock() = default;
  };
  virtual Result<std::unique_ptr<DiskLock>> lock_disks() = 0;
  /// Removes the manifest first (from then on the checkpoint does not exist), then the rest, except what
  /// other checkpoints need, and the record of its disks. kBusy names a checkpoint of which this program
  /// cannot tell what it needs.
  virtual Result<Removal> remove(const std::string& id) = 0;
  /// Removes what dead writers and interrupted removals left, and what was kept for checkpoints that are gone
  /// now; returns how many leftovers. Gives the room back that removed checkpoints take though nobody needs
  /// it: after a series of removals, sweep once.
  virtual Result<u64> sweep(Sweep what = Sweep::kAll) = 0;

  /// Resolves an id, a unique prefix of at least 4 digits, or `VMNAME@latest`.
  Result<std::string> resolve(std::string_view checkpoint) const;
};

/// Opens a directory as a store. `create`: make it (and its parents) if it is not there; otherwise
/// a missing directory is kNotFound. A directory with foreign content is never written to.
Result<std::unique_ptr<Store>> open_directory_store(const std::string& path, bool create);

}  // namespace vmsieve
