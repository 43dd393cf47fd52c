// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <bit>
#include <new>

#include "vmsieve/base/endian.h"
#include "vmsieve/image/memory_index.h"
#include "vmsieve/image/varint.h"

namespace vmsieve {
namespace {

constexpr std::string_view kMagic = "VMSIEVEI";
constexpr u64 kVersion = 1;
constexpr u64 kKnownFeatures = 0;

constexpr u64 kHeaderBytes = 64;
constexpr u64 kIdBytes = 16;
constexpr u64 kFrameRecordBytes = 40;
/// The least that a block and a run take: what bounds their counts before memory is allocated.
constexpr u64 kMinBlockBytes = 8 + 1 + 8 + 8;
constexpr u64 kMinRunBytes = 3;
/// The most that a run takes: kind, pages, frame, page in it.
constexpr u64 kMaxRunBytes = 1 + 3 * kMaxVarintBytes;

void append_frame(std::vector<std::byte>& out, const Frame& frame) {
  append_le(out, frame.object);
  append_le(out, static_cast<u8>(frame.codec));
  out.insert(out.end(), 3, std::byte{0});
  append_le(out, frame.offset);
  append_le(out, frame.stored_bytes);
  append_le(out, frame.raw_bytes);
  append_le(out, frame.checksum);
}

void append_runs(std::vector<std::byte>& out, const std::vector<PageRun>& runs) {
  std::array<std::byte, kMaxRunBytes> buffer{};
  u64 last_frame = 0;
  for (const PageRun& run : runs) {
    std::byte* end = buffer.data();
    *end++ = static_cast<std::byte>(run.kind);
    end = write_varint(end, run.pages);
    if (run.kind == RunKind::kData) {
      end = write_varint(end, zigzag(run.frame - last_frame));
      end = write_varint(end, run.page_in_frame);
      last_frame = run.frame;
    } else {
      *end++ = static_cast<std::byte>(run.fill);
    }
    out.insert(out.end(), buffer.data(), end);
  }
}

/// Reads the index from front to back and remembers where it is, for errors.
class IndexReader {
 public:
  explicit IndexReader(std::span<const std::byte> bytes) : total_(bytes.size()), rest_(bytes) {}

  Result<MemoryIndex> read();

 private:
  u64 offset() const { return total_ - rest_.size(); }
  Error damaged(std::string_view what) const {
    return make_error(ErrorKind::kDamaged, "index, offset {:#x}: {}", offset(), what);
  }
  /// For callers that have checked that the bytes are there.
  template <typename T>
  T take() {
    const T value = load_le<T>(rest_.data());
    rest_ = rest_.subspan(sizeof(T));
    return value;
  }
  std::string take_text(u64 bytes) {
    std::string text(bytes, '\0');
    std::memcpy(text.data(), rest_.data(), bytes);
    rest_ = rest_.subspan(bytes);
    return text;
  }

  Result<void> read_header();
  Result<void> read_frames(MemoryIndex& index);
  Result<void> read_block(MemoryIndex& index);
  Result<void> read_runs(BlockIndex& block, u64 count);

  u64 total_;
  std::span<const std::byte> rest_;
  u64 ancestors_ = 0;
  u64 frames_ = 0;
  u64 blocks_ = 0;
  u64 runs_ = 0;
};

Result<void> IndexReader::read_header() {
  if (rest_.size() < kHeaderBytes) return damaged("it is shorter than its header");
  if (std::memcmp(rest_.data(), kMagic.data(), kMagic.size()) != 0) return damaged("its magic is missing");
  rest_ = rest_.subspan(kMagic.size());
  if (const u64 version = take<u64>(); version != kVersion) {
    return make_error(ErrorKind::kUnsupported, "index version {} is not the version {} that is understood",
                      version, kVersion);
  }
  if (const u64 bytes = take<u64>(); bytes != total_) {
    return make_error(ErrorKind::kDamaged, "index, offset 0x10: its length is {}, but {} bytes are there",
                      bytes, total_);
  }
  if (const u64 unknown = take<u64>() & ~kKnownFeatures; unknown != 0) {
    return make_error(ErrorKind::kUnsupported, "the index requires feature bit {}, which is unknown",
                      std::countr_zero(unknown));
  }
  ancestors_ = take<u64>();
  frames_ = take<u64>();
  blocks_ = take<u64>();
  runs_ = take<u64>();
  if (ancestors_ > rest_.size() / kIdBytes || frames_ > rest_.size() / kFrameRecordBytes ||
      blocks_ > rest_.size() / kMinBlockBytes || runs_ > rest_.size() / kMinRunBytes) {
    return make_error(
        ErrorKind::kDamaged,
        "index, offset 0x20: {} ancestors, {} frames, {} blocks and {} runs do not fit in {} bytes",
        ancestors_, frames_, blocks_, runs_, total_);
  }
  return {};
}

Result<void> IndexReader::read_frames(MemoryIndex& index) {
  if (frames_ > rest_.size() / kFrameRecordBytes) return damaged("the frames are cut off");
  index.frames.reserve(frames_);
  for (u64 i = 0; i < frames_; ++i) {
    Frame frame;
    frame.object = take<u32>();
    // An unknown codec fits the type (its underlying type is u8) and is refused by validate().
    frame.codec = static_cast<Codec>(take<u8>());
    if (rest_[0] != std::byte{0} || rest_[1] != std::byte{0} || rest_[2] != std::byte{0}) {
      return damaged("reserved bytes of a frame are not zero");
    }
    rest_ = rest_.subspan(3);
    frame.offset = take<u64>();
    frame.stored_bytes = take<u64>();
    frame.raw_bytes = take<u64>();
    frame.checksum = take<u64>();
    index.frames.push_back(frame);
  }
  return {};
}

Result<void> IndexReader::read_block(MemoryIndex& index) {
  if (rest_.size() < kMinBlockBytes) return damaged("a block is cut off");
  BlockIndex block;
  const u64 name_bytes = take<u64>();
  if (name_bytes == 0 || name_bytes > kMaxBlockNameBytes) {
    return damaged("the length of a block's name is not 1 to 255");
  }
  if (rest_.size() < name_bytes + 16) return damaged("a block is cut off");
  block.name = take_text(name_bytes);
  block.used_bytes = take<u64>();
  const u64 count = take<u64>();
  if (count > runs_ || count > rest_.size() / kMinRunBytes) {
    return damaged("a block has more runs than the index holds");
  }
  runs_ -= count;
  VMSIEVE_TRY(read_runs(block, count));
  index.blocks.push_back(std::move(block));
  return {};
}

Result<void> IndexReader::read_runs(BlockIndex& block, u64 count) {
  block.runs.reserve(count);
  u64 page = 0;
  u64 last_frame = 0;
  for (u64 i = 0; i < count; ++i) {
    if (rest_.empty()) return damaged("a run is cut off");
    PageRun run;
    const auto kind = static_cast<u8>(rest_[0]);
    if (kind < static_cast<u8>(RunKind::kFree) || kind > static_cast<u8>(RunKind::kData)) {
      return damaged("the kind of a run is unknown");
    }
    run.kind = static_cast<RunKind>(kind);
    run.first_page = page;
    std::span<const std::byte> cursor = rest_.subspan(1);
    const std::optional<u64> pages = read_varint(cursor);
    // Without overflow here; that the run ends inside the block is for validate() to say.
    if (!pages || *pages > kMaxGuestBytes - page) return damaged("the page count of a run is malformed");
    run.pages = *pages;
    page += run.pages;
    if (run.kind == RunKind::kData) {
      const std::optional<u64> step = read_varint(cursor);
      const std::optional<u64> page_in_frame = step ? read_varint(cursor) : std::nullopt;
      if (!page_in_frame) return damaged("the frame of a run is malformed");
      run.frame = last_frame + unzigzag(*step);
      run.page_in_frame = *page_in_frame;
      last_frame = run.frame;
    } else {
      if (cursor.empty()) return damaged("a run is cut off");
      run.fill = static_cast<u8>(cursor[0]);
      cursor = cursor.subspan(1);
    }
    rest_ = cursor;
    block.runs.push_back(run);
  }
  return {};
}

Result<MemoryIndex> IndexReader::read() {
  VMSIEVE_TRY(read_header());
  MemoryIndex index;
  index.ancestors.resize(ancestors_);
  for (std::string& ancestor : index.ancestors) ancestor = take_text(kIdBytes);
  VMSIEVE_TRY(read_frames(index));
  for (u64 i = 0; i < blocks_; ++i) VMSIEVE_TRY(read_block(index));
  if (runs_ != 0) return damaged("the blocks have fewer runs than the header says");
  if (!rest_.empty()) return damaged("bytes follow the last block");
  if (auto valid = validate(index); !valid.ok()) return valid.error().with_context("index");
  return index;
}

}  // namespace

std::vector<std::byte> encode_index(const MemoryIndex& index) {
  u64 runs = 0;
  for (const BlockIndex& block : index.blocks) runs += block.runs.size();

  std::vector<std::byte> out;
  // A run of a real guest takes three to five bytes.
  out.reserve(kHeaderBytes + kIdBytes * index.ancestors.size() + kFrameRecordBytes * index.frames.size() +
              512 * index.blocks.size() + 5 * runs);
  append_bytes(out, as_byte_span(kMagic));
  append_le(out, kVersion);
  append_le(out, u64{0});  // length, put in at the end
  append_le(out, u64{0});  // required features
  append_le(out, static_cast<u64>(index.ancestors.size()));
  append_le(out, static_cast<u64>(index.frames.size()));
  append_le(out, static_cast<u64>(index.blocks.size()));
  append_le(out, runs);
  for (const std::string& id : index.ancestors) append_bytes(out, as_byte_span(id));
  for (const Frame& frame : index.frames) append_frame(out, frame);
  for (const BlockIndex& block : index.blocks) {
    append_le(out, static_cast<u64>(block.name.size()));
    append_bytes(out, as_byte_span(block.name));
    append_le(out, block.used_bytes);
    append_le(out, static_cast<u64>(block.runs.size()));
    append_runs(out, block.runs);
  }
  const u64 bytes = out.size();
  for (unsigned i = 0; i < 8; ++i) out[16 + i] = static_cast<std::byte>(bytes >> (8 * i));
  return out;
}

Result<MemoryIndex> decode_index(std::span<const std::byte> bytes) {
  try {
    return IndexReader{bytes}.read();
  } catch (const std::bad_alloc&) {
    return make_error(ErrorKind::kIo, "no memory for an index of {} bytes", bytes.size());
  }
}

}  // namespace vmsieve
