// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/guest_file.h"

#include <algorithm>

#include "vmsieve/restore/frame_feed.h"

namespace vmsieve {

namespace {

constexpr std::size_t kFillBytes = kMiB;

/// Pages of a block, and whether they are in the file.
struct Stretch {
  u64 pages = 0;
  bool in_file = false;
};

/// What the file has of [first, end) of a block. Left out runs shorter than `shortest` are in the file.
std::vector<Stretch> stretches(const BlockIndex& block, u64 first, u64 end, u64 shortest) {
  std::vector<Stretch> found;
  for (const PageRun& run : block.runs) {
    const u64 from = std::max(first, run.first_page);
    const u64 to = std::min(end, run.first_page + run.pages);
    if (from >= to) continue;
    const bool in_file = run.kind != RunKind::kFree || to - from < shortest;
    if (!found.empty() && found.back().in_file == in_file) {
      found.back().pages += to - from;
    } else {
      found.push_back({to - from, in_file});
    }
  }
  return found;
}

std::vector<FileSegment> cut_segments(const Manifest& manifest, const MemoryIndex& index, u64 offset,
                                      u64 shortest) {
  std::vector<FileSegment> segments;
  for (const MappingRecord& mapping : manifest.mappings) {
    if (!manifest.blocks[mapping.block].guest_ram) continue;
    const u64 first = mapping.block_offset >> kPageShift;
    u64 page = first;
    bool open = false;
    for (const Stretch& stretch :
         stretches(index.blocks[mapping.block], first, first + (mapping.bytes >> kPageShift), shortest)) {
      if (!open || stretch.in_file) {
        segments.push_back({mapping.address + (page - first) * kPageSize, 0, 0, offset, mapping.block, page});
        open = true;
      }
      segments.back().pages += stretch.pages;
      if (stretch.in_file) {
        segments.back().file_pages = stretch.pages;
        offset += stretch.pages * kPageSize;
      }
      page += stretch.pages;
    }
  }
  return segments;
}

/// Where the pages of a block are in the file.
class Places {
 public:
  Places(const std::vector<FileSegment>& segments, std::size_t blocks) : blocks_(blocks) {
    for (const FileSegment& segment : segments) blocks_[segment.block].segments.push_back(segment);
    for (Block& block : blocks_) {
      std::ranges::stable_sort(block.segments, {}, &FileSegment::first_page);
      // A block may be mapped more than once.
      block.overlapping =
          std::ranges::adjacent_find(block.segments, [](const FileSegment& a, const FileSegment& b) {
            return a.first_page + a.pages > b.first_page;
          }) != block.segments.end();
    }
  }

  /// Calls `work(offset in the file, first page, pages)` for each part of the run that is in the file.
  template <typename Work>
  Result<void> for_each(u32 block, u64 first, u64 pages, const Work& work) const {
    const auto& [segments, overlapping] = blocks_[block];
    auto segment = segments.begin();
    if (!overlapping) {
      segment = std::ranges::partition_point(
          segments, [&](const FileSegment& s) { return s.first_page + s.pages <= first; });
    }
    for (; segment != segments.end() && segment->first_page < first + pages; ++segment) {
      const u64 from = std::max(first, segment->first_page);
      const u64 to = std::min(first + pages, segment->first_page + segment->file_pages);
      if (from >= to) continue;
      VMSIEVE_TRY(work(segment->offset + (from - segment->first_page) * kPageSize, from, to - from));
    }
    return {};
  }

 private:
  struct Block {
    std::vector<FileSegment> segments;
    bool overlapping = false;
  };
  std::vector<Block> blocks_;
};

Result<void> write_fill(OutputFile& file, u64 offset, u64 bytes, u8 fill) {
  const std::vector<std::byte> content(std::min<u64>(bytes, kFillBytes), std::byte{fill});
  for (u64 done = 0; done < bytes; done += content.size()) {
    const u64 count = std::min<u64>(content.size(), bytes - done);
    VMSIEVE_TRY(file.write_at(offset + done, std::span{content}.first(count)));
  }
  return {};
}

}  // namespace

std::vector<FileSegment> segments_by_address(const Manifest& manifest) {
  std::vector<FileSegment> segments;
  for (const MappingRecord& mapping : manifest.mappings) {
    if (!manifest.blocks[mapping.block].guest_ram) continue;
    const u64 pages = mapping.bytes >> kPageShift;
    segments.push_back(
        {mapping.address, pages, pages, mapping.address, mapping.block, mapping.block_offset >> kPageShift});
  }
  return segments;
}

std::vector<FileSegment> segments_without_free(const Manifest& manifest, const MemoryIndex& index, u64 offset,
                                               std::size_t most) {
  for (u64 shortest = 1;; shortest *= 2) {
    std::vector<FileSegment> segments = cut_segments(manifest, index, offset, shortest);
    // At last nothing is left out, and there is one segment for each mapping.
    if (segments.size() <= most || shortest > (kMaxGuestBytes >> kPageShift)) return segments;
  }
}

Result<void> write_segments(const CheckpointReader& reader, const std::vector<FileSegment>& segments,
                            unsigned threads, OutputFile& file, const ProgressFunction& progress) {
  const MemoryIndex& index = reader.index();
  const Places places(segments, index.blocks.size());
  std::vector<bool> elsewhere(index.blocks.size(), true);
  for (const FileSegment& segment : segments) elsewhere[segment.block] = false;

  Progress at{"writing", 0, 0};
  for (u32 block = 0; block < index.blocks.size(); ++block) {
    if (elsewhere[block]) continue;
    for (const PageRun& run : index.blocks[block].runs) {
      if (run.kind == RunKind::kData) {
        at.total_bytes += run.pages * kPageSize;
      } else if (run.fill != 0) {
        VMSIEVE_TRY(places.for_each(block, run.first_page, run.pages, [&](u64 offset, u64, u64 pages) {
          return write_fill(file, offset, pages * kPageSize, run.fill);
        }));
      }
    }
  }

  reader.expect_one_pass();
  FrameFeed feed(reader, frame_jobs(index, elsewhere), threads);
  for (;;) {
    VMSIEVE_ASSIGN(const auto decoded, feed.next());
    if (!decoded) return {};
    for (const PagePlacement& placement : decoded->job->placements) {
      VMSIEVE_TRY(places.for_each(
          placement.block, placement.first_page, placement.pages, [&](u64 offset, u64 first, u64 pages) {
            const u64 in_frame = placement.page_in_frame + (first - placement.first_page);
            return file.write_at(offset, decoded->bytes.subspan(in_frame * kPageSize, pages * kPageSize));
          }));
      at.done_bytes += placement.pages * kPageSize;
    }
    if (progress) progress(at);
  }
}

}  // namespace vmsieve
