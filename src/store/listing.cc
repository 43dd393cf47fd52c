// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <iterator>
#include <thread>
#include <tuple>

#include "vmsieve/store/catalog.h"
#include "vmsieve/store/directory_store.h"
#include "vmsieve/store/retired.h"

namespace vmsieve {
namespace {

using namespace directory_store;

/// The objects of a checkpoint are there and as long as its manifest says.
Result<void> check_objects(const Directory& folder, const Manifest& manifest) {
  for (const ObjectRecord& object : manifest.objects) {
    const auto bytes = regular_size_at(folder, object.name);
    if (!bytes.ok()) {
      const bool missing = bytes.error().kind() == ErrorKind::kNotFound;
      if (!missing) return bytes.error().with_context(fmt::format("checkpoint {}", manifest.id));
      return make_error(ErrorKind::kDamaged, "checkpoint {}: object {} is missing", manifest.id, object.name);
    }
    if (*bytes != object.bytes) {
      return make_error(ErrorKind::kDamaged, "checkpoint {}: object {} has {} bytes instead of {}",
                        manifest.id, object.name, *bytes, object.bytes);
    }
  }
  return {};
}

/// Adds what there is under one name; a checkpoint as what `take` makes of its folder and manifest.
template <typename Checkpoint, typename Take>
void list_one(const Directory& checkpoints, const std::string& id, ListingOf<Checkpoint>& listing,
              Take take) {
  const auto folder = open_directory_at(checkpoints, id);
  if (!folder.ok()) {
    if (folder.error().kind() != ErrorKind::kNotFound) listing.damaged.push_back({id, folder.error()});
    return;
  }
  auto manifest = read_manifest(*folder, id);
  const auto objects = manifest.ok() ? check_objects(*folder, *manifest) : Result<void>{manifest.error()};
  if (objects.ok()) {
    listing.checkpoints.push_back(take(*folder, std::move(*manifest)));
    return;
  }
  if (const auto retired = exists_at(*folder, kRetired); retired.ok() && *retired) {
    ++listing.retired;
    struct stat info {};
    if (::fstatat(folder->fd.get(), kMemory, &info, AT_SYMLINK_NOFOLLOW) == 0)
      listing.retired_bytes += static_cast<u64>(info.st_blocks) * 512;
    return;
  }
  // No manifest, or it is gone now: removed while we looked, or never committed.
  const auto exists = exists_at(*folder, kManifest);
  if (!exists.ok() || *exists) listing.damaged.push_back({id, objects.error()});
}

/// A thread is worth its start from some dozens of manifests on; those of a store on a network wait for it.
std::size_t reading_threads(std::size_t checkpoints) {
  constexpr std::size_t kCheckpointsEach = 32;
  constexpr std::size_t kMostThreads = 8;
  return std::min({(checkpoints + kCheckpointsEach - 1) / kCheckpointsEach, kMostThreads,
                   std::size_t{std::max(1U, std::thread::hardware_concurrency())}});
}

template <typename Checkpoint>
void append(ListingOf<Checkpoint>& listing, ListingOf<Checkpoint>&& more) {
  std::ranges::move(more.checkpoints, std::back_inserter(listing.checkpoints));
  std::ranges::move(more.damaged, std::back_inserter(listing.damaged));
  listing.retired += more.retired;
  listing.retired_bytes += more.retired_bytes;
}

/// What `look(id, listing)` adds for each of `ids`, by several threads.
template <typename Checkpoint, typename Look>
ListingOf<Checkpoint> look_at_all(const std::vector<std::string>& ids, Look look) {
  std::vector<ListingOf<Checkpoint>> parts(reading_threads(ids.size()));
  std::atomic<std::size_t> next = 0;
  const auto read = [&](ListingOf<Checkpoint>& part) {
    for (std::size_t i = next++; i < ids.size(); i = next++) look(ids[i], part);
  };
  std::vector<std::thread> helpers;
  for (std::size_t i = 1; i < parts.size(); ++i) helpers.emplace_back(read, std::ref(parts[i]));
  if (!parts.empty()) read(parts.front());
  for (std::thread& helper : helpers) helper.join();
  ListingOf<Checkpoint> listing;
  for (ListingOf<Checkpoint>& part : parts) append(listing, std::move(part));
  return listing;
}

template <typename Checkpoint>
void sort(ListingOf<Checkpoint>& listing) {
  std::ranges::sort(listing.damaged, {}, &DamagedCheckpoint::id);
  std::ranges::sort(listing.checkpoints, [](const Checkpoint& a, const Checkpoint& b) {
    return std::tie(a.created, a.id) < std::tie(b.created, b.id);
  });
}

Result<std::vector<std::string>> checkpoint_ids(const Directory& checkpoints) {
  VMSIEVE_ASSIGN(std::vector<std::string> names, list_directory(checkpoints));
  std::erase_if(names, [](const std::string& name) { return !is_checkpoint_id(name); });
  return names;
}

/// Is there nothing in the folder but what a checkpoint consists of?
bool is_settled(const Directory& folder, const Manifest& manifest) {
  const auto names = list_directory(folder);
  return names.ok() && std::ranges::all_of(*names, [&](const std::string& name) {
           return name == kManifest || name == kDisks || name == kHint ||
                  std::ranges::find(manifest.objects, name, &ObjectRecord::name) != manifest.objects.end();
         });
}

/// A checkpoint, and what the catalog is to say of it, if it can.
struct LookedAt {
  CheckpointSummary summary;
  std::optional<Catalog::Entry> entry;
  bool known = false;  ///< `entry` is the catalog's, as it was
};

void read_one(const Directory& checkpoints, const std::string& id, ListingOf<LookedAt>& listing) {
  // Before it is read: what changes after that gives another stamp.
  std::optional<Catalog::Entry> entry = stamped_entry(checkpoints, id);
  list_one(checkpoints, id, listing, [&entry](const Directory& folder, const Manifest& manifest) {
    LookedAt seen{CheckpointSummary::of(manifest), std::move(entry)};
    if (seen.entry) {
      seen.entry->settled = is_settled(folder, manifest);
      for (const ObjectRecord& object : manifest.objects)
        seen.entry->objects.push_back({.name = object.name, .bytes = object.bytes});
      seen.entry->summary = seen.summary;
    }
    return seen;
  });
}

/// By the catalog if nothing has changed, else by its manifest.
void look_at_one(const Directory& checkpoints, const Catalog& catalog, const std::string& id,
                 ListingOf<LookedAt>& listing) {
  if (const Catalog::Entry* entry = catalog.current(checkpoints, id)) {
    listing.checkpoints.push_back({entry->summary, *entry, true});
  } else {
    read_one(checkpoints, id, listing);
  }
}

/// Adds the entries of what was looked at; returns how many of them were not known.
std::size_t add_entries(Catalog& catalog, std::vector<LookedAt>& looked_at) {
  std::size_t added = 0;
  for (LookedAt& one : looked_at) {
    if (!one.entry) continue;
    catalog.entries.insert_or_assign(one.summary.id, std::move(*one.entry));
    added += one.known ? 0 : 1;
  }
  return added;
}

/// Was the catalog written in the last minute? Who has it written again at every command, for his files seem
/// to change all the time, is worse off than without.
bool is_new(const Directory& root) {
  constexpr i64 kSeconds = 60;
  struct stat info {};
  return ::fstatat(root.fd.get(), kCatalog, &info, AT_SYMLINK_NOFOLLOW) == 0 &&
         std::abs(static_cast<i64>(::time(nullptr)) - static_cast<i64>(info.st_mtime)) < kSeconds;
}

}  // namespace

void directory_store::add_to_catalog(const Directory& root, const Directory& checkpoints, Catalog catalog,
                                     std::vector<std::string> unknown) {
  if (unknown.size() < kWorthCataloguing || is_new(root)) return;
  // Where nothing can be written, nothing need be read.
  if (!unlink_at(root, kCatalogTemporary).ok() || !create_file_at(root, kCatalogTemporary, O_WRONLY).ok())
    return;
  auto looked = look_at_all<LookedAt>(
      unknown, [&](const std::string& id, auto& part) { read_one(checkpoints, id, part); });
  std::erase_if(catalog.entries, [&](const auto& one) {
    const auto there = exists_at(checkpoints, one.first);
    return there.ok() && !*there;
  });
  if (add_entries(catalog, looked.checkpoints) < kWorthCataloguing || !catalog.write(root).ok())
    (void)unlink_at(root, kCatalogTemporary);
}

Result<Listing> DirectoryStore::list() const {
  const auto checkpoints = open_directory_at(*root_, kCheckpoints);
  if (!checkpoints.ok()) {
    if (checkpoints.error().kind() == ErrorKind::kNotFound) return Listing{};
    return checkpoints.error();
  }
  VMSIEVE_ASSIGN(const std::vector<std::string> ids, checkpoint_ids(*checkpoints));
  auto listing = look_at_all<Manifest>(ids, [&](const std::string& id, Listing& part) {
    list_one(*checkpoints, id, part,
             [](const Directory&, Manifest&& manifest) { return std::move(manifest); });
  });
  sort(listing);
  return listing;
}

Result<Summaries> DirectoryStore::summaries() const {
  const auto checkpoints = open_directory_at(*root_, kCheckpoints);
  if (!checkpoints.ok()) {
    if (checkpoints.error().kind() == ErrorKind::kNotFound) return Summaries{};
    return checkpoints.error();
  }
  VMSIEVE_ASSIGN(const std::vector<std::string> ids, checkpoint_ids(*checkpoints));
  const Catalog catalog = Catalog::read(*root_);
  auto looked = look_at_all<LookedAt>(
      ids, [&](const std::string& id, auto& part) { look_at_one(*checkpoints, catalog, id, part); });
  Summaries summaries;
  for (const LookedAt& one : looked.checkpoints) summaries.checkpoints.push_back(one.summary);
  summaries.damaged = std::move(looked.damaged);
  summaries.retired = looked.retired;
  summaries.retired_bytes = looked.retired_bytes;
  sort(summaries);

  Catalog now;
  if (add_entries(now, looked.checkpoints) >= kWorthCataloguing) {
    // Where it cannot be written, or somebody else is at work, the next one reads the manifests as this one
    // did.
    if (const auto held = try_lock(*root_); held.ok() && held->held()) (void)now.write(*root_);
  }
  return summaries;
}

}  // namespace vmsieve
