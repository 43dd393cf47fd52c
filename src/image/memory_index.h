// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// How the bytes of a frame are stored.
enum class Codec : u8 { kNone = 0, kLz4 = 1, kZstd = 2 };
std::string_view to_string(Codec codec);

/// What the index says of a run of pages.
enum class RunKind : u8 {
  kFree =
      1,  ///< held nothing worth keeping; must read as `fill` (zero, or the kernel's poison) after a restore
  kFill = 2,  ///< in use, every byte is `fill` (zero included)
  kData = 3,  ///< in use, bytes are in a frame
};

/// One run of pages of a block, all of one kind: page indices [first_page, first_page + pages).
struct PageRun {
  u64 first_page = 0;
  u64 pages = 0;
  RunKind kind = RunKind::kFree;
  u8 fill = 0;            ///< for kFree and kFill
  u64 frame = 0;          ///< for kData: index into MemoryIndex::frames
  u64 page_in_frame = 0;  ///< for kData: first page's position inside the decoded frame

  friend bool operator==(const PageRun&, const PageRun&) = default;
};

/// A frame: up to kMaxFrameBytes of pages, compressed and check-summed by itself.
struct Frame {
  u32 object = 0;  ///< 0: this checkpoint's memory object; N: MemoryIndex::ancestors[N - 1]
  Codec codec = Codec::kNone;
  u64 offset = 0;  ///< bytes into the object
  u64 stored_bytes = 0;
  u64 raw_bytes = 0;  ///< after decoding; a multiple of kPageSize
  u64 checksum = 0;   ///< XXH3-64 of the stored bytes

  friend bool operator==(const Frame&, const Frame&) = default;
};

inline constexpr u64 kMaxFrameBytes = kMiB;

struct BlockIndex {
  std::string name;           ///< QEMU's RAM block name
  u64 used_bytes = 0;         ///< pages = ceil(used_bytes / kPageSize)
  std::vector<PageRun> runs;  ///< ascending, gapless: they cover every page of the block exactly once

  u64 pages() const { return (used_bytes + kPageSize - 1) / kPageSize; }
  friend bool operator==(const BlockIndex&, const BlockIndex&) = default;
};

/// The largest sum of used_bytes of all blocks: the guest-physical space of x86-64 (MAXPHYADDR 52). Page
/// counts below it add without overflow.
inline constexpr u64 kMaxGuestBytes = u64{1} << 52;

/// Block names are at most this long (QEMU travels them behind a one-byte length, migration/ram.c).
inline constexpr u64 kMaxBlockNameBytes = 255;

/// The complete index of a checkpoint's memory: says of every page what it is, without looking at
/// any other checkpoint.
struct MemoryIndex {
  std::vector<std::string> ancestors;  ///< checkpoint ids whose memory objects hold frames
  std::vector<Frame> frames;
  std::vector<BlockIndex> blocks;

  friend bool operator==(const MemoryIndex&, const MemoryIndex&) = default;
};

/// Encodes the index as docs/format.md says. The index must be valid (see validate()); an invalid one gives
/// bytes that decode_index() refuses.
std::vector<std::byte> encode_index(const MemoryIndex& index);

/// Decodes and validates; every count is bounded by the bytes that are there before memory is
/// allocated for it (a run of 3 bytes becomes 40 in memory, which is the worst factor). The bytes carry no
/// checksum of themselves: compare MemoryTrailer::index_checksum first. kDamaged says what is wrong at which
/// offset; kUnsupported names an unknown required feature bit or version.
Result<MemoryIndex> decode_index(std::span<const std::byte> bytes);

/// All the "must" rules of docs/format.md that concern the index itself, kDamaged names the one broken. What
/// it cannot know: the sizes of the objects, the checkpoint's id, and the manifest (CheckpointReader checks
/// those).
Result<void> validate(const MemoryIndex& index);

/// Fixed-size structures at both ends of a memory object.
inline constexpr u64 kMemoryHeaderBytes = kPageSize;
inline constexpr u64 kMemoryTrailerBytes = 64;

struct MemoryTrailer {
  u64 index_offset = 0;
  u64 index_bytes = 0;
  u64 index_checksum = 0;  ///< XXH3-64 of the encoded index
};

/// The header of the memory object of checkpoint `id`: kMemoryHeaderBytes bytes.
std::vector<std::byte> encode_memory_header(std::string_view id);
/// Checks magic, checksum, version, features, sizes, and that the object belongs to checkpoint `id`. `bytes`
/// must be the kMemoryHeaderBytes first bytes of the object; fewer are kDamaged.
Result<void> check_memory_header(std::span<const std::byte> bytes, std::string_view id);
std::vector<std::byte> encode_memory_trailer(const MemoryTrailer& trailer);
/// `bytes`: the last kMemoryTrailerBytes of the object. `object_bytes` is the size of the whole object:
/// header, frames, index and trailer must fill it exactly.
Result<MemoryTrailer> decode_memory_trailer(std::span<const std::byte> bytes, u64 object_bytes);

}  // namespace vmsieve
