// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"
#include "vmsieve/store/directory_io.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

/// By what a file or a directory can be told to be the one that was seen before, unchanged: whoever writes to
/// it, puts another in its place or changes the names in it changes one of these.
struct FileStamp {
  u64 inode = 0;
  u64 bytes = 0;
  u64 modified_ns = 0;  ///< since 1970, as below
  u64 changed_ns = 0;

  friend bool operator==(const FileStamp&, const FileStamp&) = default;
  /// Two changes within one tick of a file system's clock (up to 2 s) look like one: a stamp tells something
  /// only once it has been older than that, and not if it is of the future.
  bool has_aged(u64 now_ns) const;
};

/// What a store's folders held when they were last looked at: docs/format.md, "The catalog". It spares
/// opening folders and reading manifests of which nothing has changed, and is never needed.
class Catalog {
 public:
  struct Entry {
    FileStamp folder;
    FileStamp manifest;
    /// The folder holds nothing but what a checkpoint consists of: there is nothing in it to be swept.
    bool settled = false;
    std::vector<ObjectRecord> objects;  ///< without their checksums
    CheckpointSummary summary;
  };

  /// Nothing when any byte of it is not as it must be.
  static std::optional<Catalog> decode(std::string_view text);
  std::string encode() const;

  /// The catalog of a store; an empty one when there is none that can be used.
  static Catalog read(const Directory& root);
  /// Replaces it, not durably: one that is torn is none. Under the store's lock.
  Result<void> write(const Directory& root) const;

  /// The entry of a checkpoint whose folder and manifest are as they were, and whose objects are there in
  /// full length; nullptr otherwise.
  const Entry* current(const Directory& checkpoints, const std::string& id) const;
  /// The entry of a checkpoint whose folder is as it was; nullptr otherwise.
  const Entry* unchanged(const Directory& checkpoints, const std::string& id) const;

  std::map<std::string, Entry, std::less<>> entries;  ///< by id
};

/// The stamps of a checkpoint's folder and of the manifest in it, taken before either is read; nothing when
/// there is no such folder with a manifest, or one of them has not aged.
std::optional<Catalog::Entry> stamped_entry(const Directory& checkpoints, const std::string& id);

namespace directory_store {

/// So many checkpoints that are not in the catalog are worth writing it again.
inline constexpr std::size_t kWorthCataloguing = 32;
/// As many are read by one sweep, for others wait for the lock that it holds.
inline constexpr std::size_t kMostAddedAtOnce = 4096;

/// Reads the checkpoints `unknown` and writes them into the store's catalog, which `catalog` was read from,
/// if they are worth that and it was not written in the last minute. Under the store's lock.
void add_to_catalog(const Directory& root, const Directory& checkpoints, Catalog catalog,
                    std::vector<std::string> unknown);

}  // namespace directory_store

}  // namespace vmsieve
