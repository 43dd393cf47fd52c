// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/live_memory.h"

#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "vmsieve/qemu/block_segments.h"
#include "vmsieve/qemu/page_residency.h"
#include "vmsieve/qemu/process_memory.h"

namespace vmsieve {

namespace {

using Kind = BlockSegment::Kind;

/// The parts of `a` and `b` together; both ascending.
std::vector<ByteRange> united(const std::vector<ByteRange>& a, const std::vector<ByteRange>& b) {
  std::vector<ByteRange> all;
  all.reserve(a.size() + b.size());
  std::merge(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(all),
             [](const ByteRange& x, const ByteRange& y) { return x.start < y.start; });
  std::vector<ByteRange> joined;
  for (const ByteRange& range : all) append_range(joined, range);
  return joined;
}

/// pread(2) of a mapped file; what the file ends before reads as zeros, as the rest of its last page
/// does in a mapping.
Result<void> read_file(int fd, u64 offset, std::span<std::byte> out) {
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      return errno_error(errno, fmt::format("reading {} bytes at file offset {:#x}", out.size(), offset));
    if (n == 0) {
      std::memset(out.data() + done, 0, out.size() - done);
      return {};
    }
    done += static_cast<std::size_t>(n);
  }
  return {};
}

}  // namespace

struct LiveMemory::Impl {
  pid_t pid = 0;
  RamLayout layout;
  std::vector<PfnRange> ram;
  std::vector<std::vector<BlockSegment>> segments;  // of each block
  std::optional<Pagemap> pagemap;

  Result<void> read_private(const BlockSegment& segment, u64 offset, std::span<std::byte> out) const;
  Result<void> read_segment(const BlockSegment& segment, u64 offset, std::span<std::byte> out) const;
  Result<void> read_block(u32 block, u64 offset, std::span<std::byte> out) const;
  std::vector<ByteRange> resident(const BlockSegment& segment, u64 start, u64 end,
                                  Population population) const;
  std::vector<ByteRange> populated(const BlockSegment& segment, u64 start, u64 end,
                                   Population population) const;
  std::vector<PageRun> resident_block(u32 block, u64 first, u64 count, Population population) const;
};

/// Pages that the process has of its own come from the process; the others from the file, or are zeros
/// without one. A read through the mapping would put the file's holes into the page cache, take huge
/// pages from the pool, and even for plain anonymous memory not every kernel maps the zero page: some
/// allocate (seen on a 6.18 kernel).
Result<void> LiveMemory::Impl::read_private(const BlockSegment& segment, u64 offset,
                                            std::span<std::byte> out) const {
  const u64 start = round_down(offset, kPageSize);
  const u64 end = round_up(offset + out.size(), kPageSize);
  u64 at = offset;
  const u64 stop = offset + out.size();
  const auto part = [&](u64 to) { return out.subspan(at - offset, to - at); };
  const auto read_from_file = [&](u64 to) -> Result<void> {
    if (!segment.file) {
      std::memset(part(to).data(), 0, to - at);
      return {};
    }
    return read_file(segment.file->get(), segment.file_offset + (at - segment.start), part(to));
  };
  for (const ByteRange& range : populated(segment, start, end, Population::kPresentOrSwapped)) {
    const u64 first = std::clamp(range.start, at, stop);
    const u64 last = std::clamp(range.end, at, stop);
    if (first > at) VMSIEVE_TRY(read_from_file(first));
    at = first;
    if (last > at) VMSIEVE_TRY(read_process_memory(pid, segment.host + (at - segment.start), part(last)));
    at = last;
  }
  return at < stop ? read_from_file(stop) : Result<void>{};
}

Result<void> LiveMemory::Impl::read_segment(const BlockSegment& segment, u64 offset,
                                            std::span<std::byte> out) const {
  switch (segment.kind) {
    case Kind::kShared:
      return read_file(segment.file->get(), segment.file_offset + (offset - segment.start), out);
    case Kind::kPrivate: return read_private(segment, offset, out);
  }
  return make_error(ErrorKind::kUnsupported, "unknown kind of mapping");
}

Result<void> LiveMemory::Impl::read_block(u32 block, u64 offset, std::span<std::byte> out) const {
  if (block >= layout.blocks.size()) {
    return make_error(ErrorKind::kUsage, "there is no RAM block {}: the machine has {}", block,
                      layout.blocks.size());
  }
  const RamBlock& its = layout.blocks[block];
  const std::vector<BlockSegment>& its_segments = segments[block];
  const u64 size = its_segments.empty() ? 0 : its_segments.back().end;
  if (offset > size || out.size() > size - offset) {
    return make_error(ErrorKind::kUsage,
                      "{:#x} bytes at offset {:#x} are beyond the end of RAM block '{}' ({:#x})", out.size(),
                      offset, its.name, size);
  }
  auto segment = std::upper_bound(its_segments.begin(), its_segments.end(), offset,
                                  [](u64 at, const BlockSegment& s) { return at < s.end; });
  for (std::size_t done = 0; done < out.size(); ++segment) {
    const u64 at = offset + done;
    const u64 count = std::min<u64>(out.size() - done, segment->end - at);
    auto read = read_segment(*segment, at, out.subspan(done, count));
    if (!read) return read.error().with_context(fmt::format("RAM block '{}', offset {:#x}", its.name, at));
    done += count;
  }
  return {};
}

/// The populated pages of [start, end) as offsets into the block; all of it where the pagemap cannot
/// be read.
std::vector<ByteRange> LiveMemory::Impl::populated(const BlockSegment& segment, u64 start, u64 end,
                                                   Population population) const {
  if (!pagemap) return {{start, end}};
  const u64 base = segment.host.value - segment.start;
  auto ranges = pagemap->populated(base + start, base + end, population);
  if (!ranges) return {{start, end}};
  for (ByteRange& range : *ranges) range = {range.start - base, range.end - base};
  return std::move(*ranges);
}

std::vector<ByteRange> LiveMemory::Impl::resident(const BlockSegment& segment, u64 start, u64 end,
                                                  Population population) const {
  std::vector<ByteRange> in_file;
  if (segment.file) {
    const u64 shift = segment.file_offset - segment.start;
    auto data = data_ranges(segment.file->get(), start + shift, end + shift);
    if (!data) return {{start, end}};
    for (const ByteRange& range : *data) in_file.push_back({range.start - shift, range.end - shift});
  }
  if (segment.kind == Kind::kShared) return in_file;
  return united(populated(segment, start, end, population), in_file);
}

Result<std::unique_ptr<LiveMemory>> LiveMemory::open(pid_t pid, RamLayout layout) {
  auto impl = std::make_unique<Impl>();
  impl->pid = pid;
  VMSIEVE_ASSIGN(SegmentFinder finder, SegmentFinder::open(pid));
  for (const RamBlock& block : layout.blocks) {
    VMSIEVE_ASSIGN(std::vector<BlockSegment> segments, finder.segments(block));
    impl->segments.push_back(std::move(segments));
  }
  u64 end = 0;
  for (const RamMapping& mapping : layout.mappings) {
    const bool inside = mapping.block < layout.blocks.size() &&
                        mapping.block_offset <= layout.blocks[mapping.block].used_bytes &&
                        mapping.bytes <= layout.blocks[mapping.block].used_bytes - mapping.block_offset;
    const bool whole_pages = (mapping.address.value | mapping.bytes | mapping.block_offset) % kPageSize == 0;
    const bool ascending = mapping.address.value >= end && mapping.bytes <= ~mapping.address.value;
    if (!inside || !whole_pages || !ascending || mapping.bytes == 0) {
      return make_error(ErrorKind::kUsage, "the RAM mapping of {:#x} bytes at {:#x} makes no sense",
                        mapping.bytes, mapping.address.value);
    }
    const PfnRange pages{Pfn{mapping.address}, mapping.bytes >> kPageShift};
    if (!impl->ram.empty() && impl->ram.back().end() == pages.first.value) {
      impl->ram.back().count += pages.count;
    } else {
      impl->ram.push_back(pages);
    }
    end = mapping.address.value + mapping.bytes;
  }
  // Without it every page counts as resident: slower, not wrong.
  if (auto pagemap = Pagemap::open(pid)) impl->pagemap = std::move(*pagemap);
  impl->layout = std::move(layout);
  return std::unique_ptr<LiveMemory>{new LiveMemory{std::move(impl)}};
}

LiveMemory::LiveMemory(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LiveMemory::~LiveMemory() = default;

const RamLayout& LiveMemory::layout() const { return impl_->layout; }

std::span<const PfnRange> LiveMemory::ram() const { return impl_->ram; }

Result<void> LiveMemory::read(GuestPhysical address, std::span<std::byte> out) const {
  const std::vector<RamMapping>& mappings = impl_->layout.mappings;
  auto mapping = std::upper_bound(mappings.begin(), mappings.end(), address,
                                  [](GuestPhysical at, const RamMapping& m) { return at < m.address; });
  if (mapping != mappings.begin()) --mapping;
  for (std::size_t done = 0; done < out.size(); ++mapping) {
    const GuestPhysical at = address + done;
    const bool inside =
        mapping != mappings.end() && at >= mapping->address && at - mapping->address < mapping->bytes;
    // An address so high that it wraps around is no RAM either.
    if (!inside || at < address) {
      return make_error(ErrorKind::kDamaged,
                        "guest-physical address {:#x} ({} bytes at {:#x}) is outside RAM", at.value,
                        out.size(), address.value);
    }
    const u64 into = at - mapping->address;
    const u64 count = std::min<u64>(out.size() - done, mapping->bytes - into);
    VMSIEVE_TRY(impl_->read_block(mapping->block, mapping->block_offset + into, out.subspan(done, count)));
    done += count;
  }
  return {};
}

Result<void> LiveMemory::read_block(u32 block, u64 offset, std::span<std::byte> out) const {
  return impl_->read_block(block, offset, out);
}

std::vector<LiveMemory::PageRun> LiveMemory::Impl::resident_block(u32 block, u64 first, u64 count,
                                                                  Population population) const {
  std::vector<PageRun> runs;
  if (block >= segments.size()) return runs;
  const std::vector<BlockSegment>& its = segments[block];
  const u64 pages = its.empty() ? 0 : its.back().end / kPageSize;
  if (first >= pages) return runs;
  const u64 start = first * kPageSize;
  const u64 end = (first + std::min(count, pages - first)) * kPageSize;

  std::vector<ByteRange> ranges;
  for (const BlockSegment& segment : its) {
    const u64 from = std::max(segment.start, start);
    const u64 to = std::min(segment.end, end);
    if (from >= to) continue;
    for (const ByteRange& range : resident(segment, from, to, population)) {
      append_range(ranges, {round_down(range.start, kPageSize), round_up(range.end, kPageSize)});
    }
  }
  runs.reserve(ranges.size());
  for (const ByteRange& range : ranges) {
    runs.push_back({range.start / kPageSize, (range.end - range.start) / kPageSize});
  }
  return runs;
}

std::vector<LiveMemory::PageRun> LiveMemory::resident_block(u32 block, u64 first, u64 count) const {
  return impl_->resident_block(block, first, count, Population::kPresentOrSwapped);
}

std::vector<LiveMemory::PageRun> LiveMemory::present_block(u32 block, u64 first, u64 count) const {
  return impl_->resident_block(block, first, count, Population::kPresent);
}

bool LiveMemory::is_shared(u32 block) const {
  const std::vector<BlockSegment>& segments = impl_->segments[block];
  return !segments.empty() && std::all_of(segments.begin(), segments.end(),
                                          [](const BlockSegment& s) { return s.kind == Kind::kShared; });
}

bool LiveMemory::has_file(u32 block) const {
  const std::vector<BlockSegment>& segments = impl_->segments[block];
  return std::any_of(segments.begin(), segments.end(),
                     [](const BlockSegment& s) { return s.file != nullptr; });
}

std::vector<PfnRange> LiveMemory::resident(PfnRange range) const {
  std::vector<PfnRange> pages;
  const u64 end = range.count > ~u64{0} - range.first.value ? ~u64{0} : range.end();
  for (const RamMapping& mapping : impl_->layout.mappings) {
    const u64 mapping_first = Pfn{mapping.address}.value;
    const u64 first = std::max(range.first.value, mapping_first);
    const u64 last = std::min(end, mapping_first + (mapping.bytes >> kPageShift));
    if (first >= last) continue;
    const u64 shift = (mapping.block_offset >> kPageShift) - mapping_first;
    for (const PageRun& run : resident_block(mapping.block, first + shift, last - first)) {
      const Pfn pfn{run.first - shift};
      if (!pages.empty() && pages.back().end() == pfn.value) {
        pages.back().count += run.count;
      } else {
        pages.push_back({pfn, run.count});
      }
    }
  }
  return pages;
}

}  // namespace vmsieve
