// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/store.h"

#include <algorithm>

#include "vmsieve/image/printable.h"
#include "vmsieve/store/directory_store.h"

namespace vmsieve {
namespace {

constexpr std::string_view kLatest = "latest";
constexpr std::size_t kMinPrefix = 4;
constexpr std::size_t kIdDigits = 16;

Result<std::string> latest_of(const Summaries& listing, std::string_view vm_name, const std::string& store) {
  // The listing goes from the oldest to the newest.
  const auto& all = listing.checkpoints;
  const auto found = std::find_if(all.rbegin(), all.rend(),
                                  [vm_name](const CheckpointSummary& one) { return one.vm_name == vm_name; });
  if (found != all.rend()) return found->id;
  std::vector<std::string> names;
  for (const CheckpointSummary& one : all) names.push_back(printable(one.vm_name));
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return make_error(ErrorKind::kNotFound, "store {} has no checkpoint of a VM named '{}'{}{}", store,
                    printable(vm_name), names.empty() ? "" : "; it has some of: ", fmt::join(names, ", "));
}

Result<std::string> by_prefix(const Summaries& listing, std::string_view prefix, const std::string& store) {
  std::vector<std::string> candidates;
  for (const CheckpointSummary& one : listing.checkpoints) {
    if (one.id.starts_with(prefix)) {
      candidates.push_back(fmt::format("{} ({}, {})", one.id, printable(one.vm_name), one.created));
    }
  }
  for (const DamagedCheckpoint& damaged : listing.damaged) {
    if (damaged.id.starts_with(prefix)) candidates.push_back(fmt::format("{} (damaged)", damaged.id));
  }
  if (candidates.empty()) {
    return make_error(ErrorKind::kNotFound, "store {} has no checkpoint {}", store, prefix);
  }
  if (candidates.size() > 1) {
    return make_error(ErrorKind::kAmbiguous, "{} is the beginning of {} checkpoints in store {}: {}", prefix,
                      candidates.size(), store, fmt::join(candidates, ", "));
  }
  return candidates.front().substr(0, candidates.front().find(' '));
}

Summaries in_short(const Listing& listing) {
  Summaries summaries;
  summaries.damaged = listing.damaged;
  for (const Manifest& manifest : listing.checkpoints)
    summaries.checkpoints.push_back(CheckpointSummary::of(manifest));
  return summaries;
}

}  // namespace

CheckpointSummary CheckpointSummary::of(const Manifest& manifest) {
  return {.id = manifest.id,
          .created = manifest.created,
          .mode = manifest.mode,
          .parent = manifest.parent,
          .vm_name = manifest.vm_name,
          .kernel = manifest.introspection.used ? manifest.introspection.kernel : "",
          .pause_ms = manifest.pause_ms,
          .guest_bytes = manifest.guest_bytes,
          .stored_bytes = manifest.stored_bytes};
}

Result<std::string> Store::read_hint(const std::string& /*id*/) const {
  return make_error(ErrorKind::kUnsupported, "store {} keeps no hints", name());
}

Result<void> Store::write_hint(const std::string& /*id*/, std::string_view /*text*/) {
  return make_error(ErrorKind::kUnsupported, "store {} keeps no hints", name());
}

Result<std::string> Store::resolve(std::string_view checkpoint) const {
  const std::size_t at = checkpoint.rfind('@');
  const bool by_name = at != std::string_view::npos && checkpoint.substr(at + 1) == kLatest;
  const bool is_hex = checkpoint.find_first_not_of("0123456789abcdef") == std::string_view::npos;
  if (!by_name && (!is_hex || checkpoint.size() < kMinPrefix || checkpoint.size() > kIdDigits)) {
    return make_error(
        ErrorKind::kNotFound,
        "'{}' names no checkpoint: give its id, at least {} of the id's first digits, or VMNAME@{}",
        printable(checkpoint), kMinPrefix, kLatest);
  }
  // A whole id needs no look at all the others, if it is one.
  if (!by_name && checkpoint.size() == kIdDigits && manifest(std::string{checkpoint}))
    return std::string{checkpoint};
  const std::string_view vm_name = by_name ? checkpoint.substr(0, at) : "";
  const auto find = [&](const Summaries& all) {
    return by_name ? latest_of(all, vm_name, name()) : by_prefix(all, checkpoint, name());
  };
  VMSIEVE_ASSIGN(const Summaries all, summaries());
  if (auto found = find(all)) {
    const auto read = manifest(*found);
    if (read && (!by_name || read->vm_name == vm_name)) return found;
  }
  // Damaged, gone meanwhile, or none: told by the manifests themselves.
  VMSIEVE_ASSIGN(const Listing listing, list());
  return find(in_short(listing));
}

Result<std::unique_ptr<Store>> open_directory_store(const std::string& path, bool create) {
  VMSIEVE_ASSIGN(auto store, DirectoryStore::open_path(path, create));
  return std::unique_ptr<Store>{std::move(store)};
}

}  // namespace vmsieve
