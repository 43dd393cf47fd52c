// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/ramblock_search.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <set>

#include "vmsieve/base/endian.h"
#include "vmsieve/qemu/page_residency.h"
#include "vmsieve/qemu/process_memory.h"

namespace vmsieve {

namespace {

constexpr u64 kIdstrBytes = 256;
/// How far before idstr the members are looked for, and in which steps: QEMU's 32-bit `flags` puts
/// idstr, and so the distances, off 8-byte alignment.
constexpr u64 kWindow = 128;
constexpr u64 kStep = 4;
constexpr u64 kSearchLimit = kGiB;
constexpr u64 kChunk = kMiB;
/// Names that fill a heap (a hostile one) must not fill ours.
constexpr std::size_t kMaxCandidates = 4096;

/// A place that holds a block's name as idstr would, with what stands before it.
struct Candidate {
  std::size_t target;
  std::array<std::byte, kWindow> before;

  /// The 64-bit word that starts `distance` bytes before the name.
  u64 word(u64 distance) const { return load_le<u64>(before.data() + (kWindow - distance)); }
};

/// Distances before idstr.
struct MemberPlaces {
  u64 host;
  u64 used;
  u64 total;
};

class Search {
 public:
  Search(pid_t pid, const std::vector<Vma>& maps, std::vector<RamblockTarget>& targets)
      : pid_(pid), maps_(maps), targets_(targets) {}

  Result<void> run();

 private:
  using Hosts = std::map<std::size_t, u64>;
  enum class Places { kHeap, kOthers };

  std::vector<ByteRange> places_to_search(Places which) const;
  Result<void> scan(Places which);
  Result<void> scan_range(ByteRange range);
  void collect(std::span<const std::byte> bytes, std::size_t first, std::size_t end);
  bool plausible_host(std::size_t target, u64 host) const;
  std::optional<Hosts> hosts_by(const MemberPlaces& places) const;
  Result<Hosts> calibrate();
  std::string first_unknown() const;

  pid_t pid_;
  const std::vector<Vma>& maps_;
  std::vector<RamblockTarget>& targets_;
  std::vector<Candidate> candidates_;
  u64 searched_bytes_ = 0;
};

/// Private writable memory without a file: where an allocator's memory is. Guest RAM, as far as it is
/// known, is cut out.
std::vector<ByteRange> Search::places_to_search(Places which) const {
  std::vector<ByteRange> known;
  for (const RamblockTarget& target : targets_) {
    if (target.host) known.push_back({target.host->value, target.host->value + target.total_bytes});
  }
  std::sort(known.begin(), known.end(), [](ByteRange a, ByteRange b) { return a.start < b.start; });

  std::vector<ByteRange> places;
  for (const Vma& vma : maps_) {
    if (!vma.readable || !vma.writable || vma.executable || vma.shared || vma.has_file()) continue;
    if ((vma.name == "[heap]") != (which == Places::kHeap)) continue;
    u64 at = vma.start;
    for (const ByteRange& ram : known) {
      if (ram.end <= at || ram.start >= vma.end) continue;
      if (ram.start > at) places.push_back({at, ram.start});
      at = ram.end;
    }
    if (at < vma.end) places.push_back({at, vma.end});
  }
  return places;
}

Result<void> Search::scan(Places which) {
  VMSIEVE_ASSIGN(const Pagemap pagemap, Pagemap::open(pid_));
  for (const ByteRange& place : places_to_search(which)) {
    VMSIEVE_ASSIGN(const std::vector<ByteRange> ranges, pagemap.populated(place.start, place.end));
    for (const ByteRange& range : ranges) VMSIEVE_TRY(scan_range(range));
  }
  return {};
}

Result<void> Search::scan_range(ByteRange range) {
  std::vector<std::byte> bytes;
  // Chunks overlap, so that every structure lies whole in one of them.
  for (u64 at = range.start; at < range.end; at += kChunk) {
    const u64 first = at - range.start < kWindow ? range.start : at - kWindow;
    const u64 end = std::min(at + kChunk + kIdstrBytes, range.end);
    searched_bytes_ += end - first;
    if (searched_bytes_ > kSearchLimit || candidates_.size() > kMaxCandidates) return {};
    bytes.resize(end - first);
    auto read = read_process_memory(pid_, HostVirtual{first}, bytes);
    // Memory that the process unmapped meanwhile is not where the structures are.
    if (!read && read.error().kind() != ErrorKind::kIo) return read.error();
    if (read) collect(bytes, at - first, std::min(at - first + kChunk, bytes.size()));
  }
  return {};
}

/// Adds the names that start in [first, end) of `bytes`.
void Search::collect(std::span<const std::byte> bytes, std::size_t first, std::size_t end) {
  for (std::size_t target = 0; target < targets_.size(); ++target) {
    std::array<char, kIdstrBytes> idstr{};
    const std::string& name = targets_[target].name;
    std::memcpy(idstr.data(), name.data(), std::min(name.size(), idstr.size() - 1));
    std::size_t at = std::max<std::size_t>(first, kWindow);
    while (at < end && bytes.size() - at >= kIdstrBytes) {
      const void* found = ::memmem(bytes.data() + at, bytes.size() - at, name.data(), name.size());
      if (found == nullptr) break;
      at = static_cast<std::size_t>(static_cast<const std::byte*>(found) - bytes.data());
      if (at < end && bytes.size() - at >= kIdstrBytes &&
          std::memcmp(bytes.data() + at, idstr.data(), kIdstrBytes) == 0) {
        Candidate candidate{target, {}};
        std::memcpy(candidate.before.data(), bytes.data() + at - kWindow, kWindow);
        candidates_.push_back(candidate);
      }
      ++at;
    }
  }
}

bool Search::plausible_host(std::size_t target, u64 host) const {
  if (host == 0 || host % kPageSize != 0) return false;
  const std::vector<Vma> covering = covering_vmas(maps_, host, targets_[target].total_bytes);
  return !covering.empty() &&
         std::all_of(covering.begin(), covering.end(), [](const Vma& vma) { return vma.readable; });
}

/// The address of every target if the members stand at `places`; nothing when they cannot.
std::optional<Search::Hosts> Search::hosts_by(const MemberPlaces& places) const {
  std::map<std::size_t, std::set<u64>> found;
  for (const Candidate& candidate : candidates_) {
    const RamblockTarget& target = targets_[candidate.target];
    if (candidate.word(places.used) != target.used_bytes) continue;
    if (candidate.word(places.total) != target.total_bytes) continue;
    const u64 host = candidate.word(places.host);
    const bool fits = target.host ? host == target.host->value : plausible_host(candidate.target, host);
    if (fits) found[candidate.target].insert(host);
  }
  if (found.size() != targets_.size()) return std::nullopt;
  Hosts hosts;
  for (const auto& [target, addresses] : found) {
    // More than one address: let the comparison of the answers see that.
    hosts[target] = addresses.size() == 1 ? *addresses.begin() : 0;
  }
  return hosts;
}

Result<Search::Hosts> Search::calibrate() {
  std::set<Hosts> answers;
  const auto known =
      std::find_if(targets_.begin(), targets_.end(), [](const auto& t) { return t.host.has_value(); });
  if (known == targets_.end()) return make_error(ErrorKind::kNotFound, "no address is known to measure by");
  const auto known_index = static_cast<std::size_t>(known - targets_.begin());
  for (u64 host = 2 * kStep; host <= kWindow; host += kStep) {
    const bool starts_well = std::any_of(candidates_.begin(), candidates_.end(), [&](const Candidate& c) {
      return c.target == known_index && c.word(host) == known->host->value;
    });
    if (!starts_well) continue;
    for (u64 used = 2 * kStep; used <= kWindow; used += kStep) {
      for (u64 total = 2 * kStep; total <= kWindow; total += kStep) {
        if (used == total || used == host || total == host) continue;
        if (auto hosts = hosts_by({host, used, total})) answers.insert(std::move(*hosts));
      }
    }
  }
  if (answers.empty()) return make_error(ErrorKind::kNotFound, "no place fits");
  const bool several = std::any_of(answers.begin()->begin(), answers.begin()->end(),
                                   [](const auto& entry) { return entry.second == 0; });
  if (answers.size() > 1 || several) {
    return make_error(ErrorKind::kUnsupported,
                      "QEMU's heap holds more than one address that could be RAM block '{}': "
                      "use a QEMU whose 'info ramblock' prints HVA",
                      first_unknown());
  }
  return *answers.begin();
}

std::string Search::first_unknown() const {
  std::set<std::size_t> seen;
  for (const Candidate& candidate : candidates_) seen.insert(candidate.target);
  std::string name;
  for (std::size_t i = targets_.size(); i-- > 0;) {
    if (!targets_[i].host && (name.empty() || !seen.contains(i))) name = targets_[i].name;
  }
  return name;
}

Result<void> Search::run() {
  // With most allocators QEMU's structures are in the main heap.
  VMSIEVE_TRY(scan(Places::kHeap));
  auto hosts = calibrate();
  if (!hosts && hosts.error().kind() == ErrorKind::kNotFound) {
    VMSIEVE_TRY(scan(Places::kOthers));
    hosts = calibrate();
  }
  if (!hosts && hosts.error().kind() == ErrorKind::kNotFound) {
    return make_error(ErrorKind::kUnsupported,
                      "cannot find RAM block '{}' in {} bytes of QEMU's private memory: use a QEMU whose "
                      "'info ramblock' prints HVA",
                      first_unknown(), searched_bytes_);
  }
  if (!hosts) return hosts.error();
  for (const auto& [target, host] : *hosts) targets_[target].host = HostVirtual{host};
  return {};
}

}  // namespace

Result<void> find_ramblock_hosts(pid_t pid, const std::vector<Vma>& maps,
                                 std::vector<RamblockTarget>& targets) {
  return Search{pid, maps, targets}.run();
}

}  // namespace vmsieve
