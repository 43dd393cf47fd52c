// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/image/memory_index.h"

#include <set>

#include "vmsieve/image/manifest.h"
#include "vmsieve/image/printable.h"

namespace vmsieve {
namespace {

Result<void> validate_ancestors(const MemoryIndex& index) {
  std::set<std::string_view> seen;
  for (const std::string& id : index.ancestors) {
    if (!is_checkpoint_id(id)) {
      return make_error(ErrorKind::kDamaged, "ancestor {} is no checkpoint id", seen.size());
    }
    if (!seen.insert(id).second) return make_error(ErrorKind::kDamaged, "ancestor {} is named twice", id);
  }
  return {};
}

/// What is wrong with one frame by itself; nullptr if nothing.
const char* frame_fault(const Frame& frame, u64 ancestors) {
  if (frame.object > ancestors) return "its object is not among the ancestors";
  if (frame.codec != Codec::kNone && frame.codec != Codec::kLz4 && frame.codec != Codec::kZstd) {
    return "its codec is unknown";
  }
  if (frame.raw_bytes == 0 || frame.raw_bytes > kMaxFrameBytes || frame.raw_bytes % kPageSize != 0) {
    return "its decoded size is not 1 to 256 pages";
  }
  if (frame.stored_bytes == 0 || frame.stored_bytes > frame.raw_bytes) {
    return "its stored size is not between 1 byte and its decoded size";
  }
  if (frame.codec == Codec::kNone && frame.stored_bytes != frame.raw_bytes) {
    return "it is not compressed, but its two sizes differ";
  }
  if (frame.codec == Codec::kNone && frame.offset % kPageSize != 0) {
    return "it is not compressed, but does not start at a multiple of 4096";
  }
  if (frame.offset < kMemoryHeaderBytes) return "it overlaps the header";
  if (frame.offset > ~u64{0} - kMaxFrameBytes) return "its end is beyond 64 bits";
  return nullptr;
}

Result<void> validate_frames(const MemoryIndex& index) {
  u64 own_end = kMemoryHeaderBytes;
  for (u64 i = 0; i < index.frames.size(); ++i) {
    const Frame& frame = index.frames[i];
    const char* fault = frame_fault(frame, index.ancestors.size());
    if (fault == nullptr && frame.object == 0 && frame.offset < own_end) {
      fault = "it overlaps, or stands before, the frame in front of it";
    }
    if (fault != nullptr) {
      return make_error(ErrorKind::kDamaged,
                        "frame {} (object {}, codec {}, offset {:#x}, {} bytes, decoded {} bytes): {}", i,
                        frame.object, static_cast<unsigned>(frame.codec), frame.offset, frame.stored_bytes,
                        frame.raw_bytes, fault);
    }
    if (frame.object == 0) own_end = frame.offset + frame.stored_bytes;
  }
  return {};
}

/// What is wrong with a run that starts at `expected` in a block of `pages` pages; nullptr if nothing.
const char* run_fault(const PageRun& run, u64 expected, u64 pages, const std::vector<Frame>& frames) {
  if (run.first_page != expected) return "it does not start where the run before ended";
  if (run.pages == 0) return "it has no pages";
  if (run.pages > pages - expected) return "it goes beyond the end of the block";
  switch (run.kind) {
    case RunKind::kFree:
    case RunKind::kFill:
      if (run.frame != 0 || run.page_in_frame != 0) return "it has a frame, but its kind is not data";
      return nullptr;
    case RunKind::kData: {
      if (run.fill != 0) return "it has a fill byte, but its kind is data";
      if (run.frame >= frames.size()) return "its frame does not exist";
      const u64 frame_pages = frames[run.frame].raw_bytes / kPageSize;
      if (run.page_in_frame >= frame_pages || run.pages > frame_pages - run.page_in_frame) {
        return "it goes beyond the decoded pages of its frame";
      }
      return nullptr;
    }
  }
  return "its kind is unknown";
}

Result<void> validate_block(const BlockIndex& block, const std::vector<Frame>& frames) {
  const u64 pages = block.pages();
  u64 expected = 0;
  for (const PageRun& run : block.runs) {
    if (const char* fault = run_fault(run, expected, pages, frames)) {
      return make_error(ErrorKind::kDamaged,
                        "block {}: the run at page {:#x} (kind {}, {} pages, frame {}, page {} in it): {}",
                        printable(block.name), run.first_page, static_cast<unsigned>(run.kind), run.pages,
                        run.frame, run.page_in_frame, fault);
    }
    expected += run.pages;
  }
  if (expected != pages) {
    return make_error(ErrorKind::kDamaged, "block {}: its runs cover {} pages of {}", printable(block.name),
                      expected, pages);
  }
  return {};
}

}  // namespace

std::string_view to_string(Codec codec) {
  switch (codec) {
    case Codec::kNone: return "none";
    case Codec::kLz4: return "lz4";
    case Codec::kZstd: return "zstd";
  }
  return "unknown";
}

Result<void> validate(const MemoryIndex& index) {
  VMSIEVE_TRY(validate_ancestors(index));
  VMSIEVE_TRY(validate_frames(index));
  std::set<std::string_view> names;
  u64 used_bytes = 0;
  for (const BlockIndex& block : index.blocks) {
    if (block.name.empty() || block.name.size() > kMaxBlockNameBytes) {
      return make_error(ErrorKind::kDamaged, "block {}: its name has {} bytes, not 1 to {}", names.size(),
                        block.name.size(), kMaxBlockNameBytes);
    }
    if (!names.insert(block.name).second) {
      return make_error(ErrorKind::kDamaged, "block {} is there twice", printable(block.name));
    }
    if (block.used_bytes > kMaxGuestBytes - used_bytes) {
      return make_error(ErrorKind::kDamaged, "block {}: with its {:#x} bytes the blocks exceed {:#x} bytes",
                        printable(block.name), block.used_bytes, kMaxGuestBytes);
    }
    used_bytes += block.used_bytes;
    VMSIEVE_TRY(validate_block(block, index.frames));
  }
  return {};
}

}  // namespace vmsieve
