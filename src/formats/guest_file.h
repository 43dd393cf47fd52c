// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/formats/output_file.h"
#include "vmsieve/image/manifest.h"
#include "vmsieve/image/memory_index.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve {

/// Guest-physical memory as it lies in a file: the first `file_pages` pages from `address` on are in the
/// file, the others are not.
struct FileSegment {
  u64 address = 0;  ///< guest-physical
  u64 pages = 0;
  u64 file_pages = 0;
  u64 offset = 0;  ///< into the file, of the first page
  u32 block = 0;   ///< whose pages these are
  u64 first_page = 0;
  u64 virtual_address = 0;  ///< of the kernel's mapping of it, where that is told
};

/// Main memory, one segment for each mapping of it, at the offsets of the addresses.
std::vector<FileSegment> segments_by_address(const Manifest& manifest);

/// Main memory without the pages that were left out as free: each segment is a run of pages that are in the
/// file and the run of left out ones behind it. There are never more than `most`: where there would be, short
/// runs of left out pages are in the file as well. The pages in the file follow each other from `offset` on.
std::vector<FileSegment> segments_without_free(const Manifest& manifest, const MemoryIndex& index, u64 offset,
                                               std::size_t most);

/// Writes all pages that are in the file and hold something. Every frame is checked.
Result<void> write_segments(const CheckpointReader& reader, const std::vector<FileSegment>& segments,
                            unsigned threads, OutputFile& file, const ProgressFunction& progress);

}  // namespace vmsieve
