// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/checkpoint_memory.h"

#include <algorithm>
#include <cstring>
#include <list>
#include <map>
#include <mutex>

namespace vmsieve {
namespace {

constexpr std::size_t kFramesKept = 64;

const PageRun* run_of(const std::vector<PageRun>& runs, u64 page) {
  const auto after = std::upper_bound(runs.begin(), runs.end(), page,
                                      [](u64 p, const PageRun& r) { return p < r.first_page; });
  if (after == runs.begin()) return nullptr;
  const PageRun& run = *std::prev(after);
  return page - run.first_page < run.pages ? &run : nullptr;
}

void append_range(std::vector<PfnRange>& ranges, u64 first, u64 count) {
  if (!ranges.empty() && ranges.back().end() == first) {
    ranges.back().count += count;
  } else {
    ranges.push_back({Pfn{first}, count});
  }
}

}  // namespace

struct CheckpointMemory::Cache {
  struct Entry {
    u64 frame = 0;
    std::vector<std::byte> bytes;
  };
  std::mutex mutex;
  std::list<Entry> recent;  // the last used first
  std::map<u64, std::list<Entry>::iterator> by_frame;
};

CheckpointMemory::CheckpointMemory(const CheckpointReader& reader)
    : reader_(reader), cache_(std::make_unique<Cache>()) {
  const Manifest& manifest = reader.manifest();
  for (const MappingRecord& mapping : manifest.mappings) {
    if (!manifest.blocks[mapping.block].guest_ram || mapping.address % kPageSize != 0 ||
        mapping.bytes % kPageSize != 0 || mapping.block_offset % kPageSize != 0) {
      continue;
    }
    mappings_.push_back(mapping);
    append_range(ram_, mapping.address >> kPageShift, mapping.bytes >> kPageShift);
  }
}

CheckpointMemory::~CheckpointMemory() = default;

Result<void> CheckpointMemory::copy_from_frame(u64 frame, u64 offset, std::span<std::byte> out) const {
  const std::lock_guard lock(cache_->mutex);
  auto found = cache_->by_frame.find(frame);
  if (found == cache_->by_frame.end()) {
    CheckpointReader::Scratch scratch;
    VMSIEVE_TRY(reader_.read_frame(frame, scratch));
    cache_->recent.push_front({frame, std::move(scratch.decoded)});
    found = cache_->by_frame.emplace(frame, cache_->recent.begin()).first;
    if (cache_->recent.size() > kFramesKept) {
      cache_->by_frame.erase(cache_->recent.back().frame);
      cache_->recent.pop_back();
    }
  } else {
    cache_->recent.splice(cache_->recent.begin(), cache_->recent, found->second);
  }
  const std::vector<std::byte>& bytes = found->second->bytes;
  if (offset > bytes.size() || bytes.size() - offset < out.size())
    return make_error(ErrorKind::kDamaged, "frame {} is shorter than the index says", frame);
  std::memcpy(out.data(), bytes.data() + offset, out.size());
  return {};
}

Result<void> CheckpointMemory::read_page(u64 block, u64 page, u64 offset, std::span<std::byte> out) const {
  const PageRun* run = run_of(reader_.index().blocks[block].runs, page);
  if (run == nullptr) return make_error(ErrorKind::kDamaged, "the index says nothing of page {}", page);
  if (run->kind != RunKind::kData) {
    std::memset(out.data(), run->fill, out.size());
    return {};
  }
  const u64 at = (run->page_in_frame + (page - run->first_page)) * kPageSize + offset;
  return copy_from_frame(run->frame, at, out);
}

Result<void> CheckpointMemory::read(GuestPhysical address, std::span<std::byte> out) const {
  while (!out.empty()) {
    const auto after = std::upper_bound(mappings_.begin(), mappings_.end(), address.value,
                                        [](u64 a, const MappingRecord& m) { return a < m.address; });
    if (after == mappings_.begin() || address.value - std::prev(after)->address >= std::prev(after)->bytes)
      return make_error(ErrorKind::kDamaged, "guest-physical address {:#x} is not RAM", address.value);
    const MappingRecord& mapping = *std::prev(after);
    const u64 offset = address.value % kPageSize;
    const u64 piece = std::min<u64>(out.size(), kPageSize - offset);
    const u64 page = (mapping.block_offset + (address.value - mapping.address)) >> kPageShift;
    VMSIEVE_TRY(read_page(mapping.block, page, offset, out.first(piece)));
    out = out.subspan(piece);
    address = address + piece;
  }
  return {};
}

std::vector<PfnRange> CheckpointMemory::free_pages() const {
  std::vector<PfnRange> free;
  for (const MappingRecord& mapping : mappings_) {
    const u64 map_first = mapping.block_offset >> kPageShift;
    const u64 map_end = map_first + (mapping.bytes >> kPageShift);
    for (const PageRun& run : reader_.index().blocks[mapping.block].runs) {
      const u64 first = std::max(run.first_page, map_first);
      const u64 end = std::min(run.first_page + run.pages, map_end);
      if (run.kind != RunKind::kFree || first >= end) continue;
      append_range(free, (mapping.address >> kPageShift) + (first - map_first), end - first);
    }
  }
  return free;
}

}  // namespace vmsieve
