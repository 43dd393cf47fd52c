// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/memory_units.h"

#include <algorithm>

namespace vmsieve {

MemoryUnits::MemoryUnits(const RamLayout& layout) {
  for (const RamBlock& block : layout.blocks) {
    Block made;
    made.unit_bytes = std::max(kUnitBytes, block.host_page_bytes);
    made.host = {block.host.value, block.host.value + round_up(block.used_bytes, block.host_page_bytes)};
    made.first_unit = count_;
    if (made.host.start < made.host.end) {
      made.units = (round_up(made.host.end, made.unit_bytes) - round_down(made.host.start, made.unit_bytes)) /
                   made.unit_bytes;
      by_address_.push_back(static_cast<u32>(blocks_.size()));
    }
    count_ += made.units;
    blocks_.push_back(made);
  }
  std::sort(by_address_.begin(), by_address_.end(),
            [&](u32 a, u32 b) { return blocks_[a].host.start < blocks_[b].host.start; });
}

const MemoryUnits::Block& MemoryUnits::block_of(std::size_t unit, u32* index) const {
  // The last block that begins at or before the unit; those without units are passed over.
  const auto after = std::upper_bound(blocks_.begin(), blocks_.end(), unit,
                                      [](std::size_t u, const Block& b) { return u < b.first_unit; });
  auto found = after - 1;
  while (found->units == 0) --found;
  if (index != nullptr) *index = static_cast<u32>(found - blocks_.begin());
  return *found;
}

ByteRange MemoryUnits::host(std::size_t unit) const {
  const Block& block = block_of(unit);
  const u64 start =
      round_down(block.host.start, block.unit_bytes) + (unit - block.first_unit) * block.unit_bytes;
  return {std::max(start, block.host.start), std::min(start + block.unit_bytes, block.host.end)};
}

std::optional<std::size_t> MemoryUnits::at(u64 host_address) const {
  const auto after = std::upper_bound(by_address_.begin(), by_address_.end(), host_address,
                                      [&](u64 a, u32 b) { return a < blocks_[b].host.start; });
  if (after == by_address_.begin()) return std::nullopt;
  const Block& block = blocks_[*(after - 1)];
  if (host_address >= block.host.end) return std::nullopt;
  return block.first_unit +
         (host_address - round_down(block.host.start, block.unit_bytes)) / block.unit_bytes;
}

MemoryUnits::Place MemoryUnits::place(std::size_t unit) const {
  Place place;
  const Block& block = block_of(unit, &place.block);
  const ByteRange range = host(unit);
  place.pages = {(range.start - block.host.start) >> kPageShift, (range.end - range.start) >> kPageShift};
  return place;
}

std::optional<ByteRange> MemoryUnits::host(const RamLayout& layout, GuestPhysical address, u64 bytes) const {
  const auto& mappings = layout.mappings;
  auto mapping = std::upper_bound(mappings.begin(), mappings.end(), address,
                                  [](GuestPhysical at, const RamMapping& m) { return at < m.address; });
  if (bytes == 0 || mapping == mappings.begin()) return std::nullopt;
  --mapping;
  const u64 into = address - mapping->address;
  if (into >= mapping->bytes || bytes > mapping->bytes - into) return std::nullopt;
  const u64 start = block(mapping->block).start + mapping->block_offset + into;
  return ByteRange{start, start + bytes};
}

UnitChunks cut_unit_chunks(const PagePlan& plan, const MemoryUnits& units, u64 max_pages) {
  VMSIEVE_CHECK(max_pages > 0);
  UnitChunks cut;
  cut.first_chunk.assign(units.count() + 1, 0);
  std::size_t next_unit = 0;  // whose first chunk is not known yet
  for (u32 index = 0; index < plan.blocks.size(); ++index) {
    std::size_t last_unit = units.count();  // of the last chunk of this block
    for (BlockPages run : plan.blocks[index].read) {
      while (run.pages > 0) {
        const auto unit = units.at(units.block(index).start + (run.first_page << kPageShift));
        VMSIEVE_CHECK(unit.has_value());
        const BlockPages whole = units.place(*unit).pages;
        if (*unit != last_unit || cut.chunks.back().pages == max_pages) {
          while (next_unit <= *unit) cut.first_chunk[next_unit++] = cut.chunks.size();
          cut.chunks.push_back({.block = index, .list = index, .pages = 0, .runs = {}});
          last_unit = *unit;
        }
        Chunk& chunk = cut.chunks.back();
        const u64 take =
            std::min({run.pages, max_pages - chunk.pages, whole.first_page + whole.pages - run.first_page});
        chunk.runs.push_back({run.first_page, take});
        chunk.pages += take;
        run = {run.first_page + take, run.pages - take};
      }
    }
  }
  while (next_unit <= units.count()) cut.first_chunk[next_unit++] = cut.chunks.size();
  return cut;
}

}  // namespace vmsieve
