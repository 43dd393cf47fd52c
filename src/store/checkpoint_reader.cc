// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/checkpoint_reader.h"

#include <algorithm>
#include <new>
#include <utility>

#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/printable.h"

namespace vmsieve {
namespace {

/// What is read into memory at once is bounded: a file can say that it has 2^63 bytes and be a hole.
constexpr u64 kMaxWholeBytes = 4 * kGiB;

/// `bytes` bytes of an object at `offset`, which the caller has checked against the object's size.
Result<std::vector<std::byte>> read_whole(const ObjectReader& object, u64 offset, u64 bytes) {
  if (bytes > kMaxWholeBytes) {
    return make_error(ErrorKind::kUnsupported,
                      "{} bytes at offset {:#x} are more than the {} that are read at once", bytes, offset,
                      kMaxWholeBytes);
  }
  std::vector<std::byte> out;
  try {
    out.resize(bytes);
  } catch (const std::bad_alloc&) {
    return make_error(ErrorKind::kIo, "no memory for {} bytes", bytes);
  }
  VMSIEVE_TRY(object.read(offset, out));
  return out;
}

std::string object_context(const std::string& id, std::string_view object) {
  return fmt::format("checkpoint {}, object {}", id, object);
}

/// An object that the manifest names and that is not there is damage, not a wrong name.
Result<std::unique_ptr<ObjectReader>> open_object(const Store& store, const std::string& id,
                                                  std::string_view object) {
  auto opened = store.open(id, object);
  if (opened || opened.error().kind() != ErrorKind::kNotFound) return opened;
  return Error(ErrorKind::kDamaged, opened.error().message()).with_context(object_context(id, object));
}

PageCounts count_pages(const MemoryIndex& index) {
  PageCounts counts;
  for (const BlockIndex& block : index.blocks) {
    for (const PageRun& run : block.runs) {
      counts.total += run.pages;
      if (run.kind == RunKind::kFree) counts.free += run.pages;
      if (run.kind == RunKind::kFill) (run.fill == 0 ? counts.zero : counts.fill) += run.pages;
      if (run.kind == RunKind::kData) counts.saved += run.pages;
    }
  }
  return counts;
}

Result<void> check_counts(const Manifest& manifest, const MemoryIndex& index) {
  const PageCounts counts = count_pages(index);
  const PageCounts& said = manifest.pages;
  const auto text = [](const PageCounts& c) {
    return fmt::format("{} pages, {} free, {} zero, {} fill, {} saved", c.total, c.free, c.zero, c.fill,
                       c.saved);
  };
  if (text(counts) != text(said)) {
    return make_error(ErrorKind::kDamaged, "the manifest says {}; the index says {}", text(said),
                      text(counts));
  }
  return {};
}

Result<void> check_blocks(const Manifest& manifest, const MemoryIndex& index) {
  if (manifest.blocks.size() != index.blocks.size()) {
    return make_error(ErrorKind::kDamaged, "the manifest has {} RAM blocks, the index {}",
                      manifest.blocks.size(), index.blocks.size());
  }
  u64 guest_bytes = 0;
  for (u64 i = 0; i < index.blocks.size(); ++i) {
    const BlockRecord& said = manifest.blocks[i];
    const BlockIndex& block = index.blocks[i];
    if (said.name != block.name || said.used_bytes != block.used_bytes) {
      return make_error(ErrorKind::kDamaged,
                        "RAM block {} is {} of {:#x} bytes in the manifest, {} of {:#x} in the index", i,
                        printable(said.name), said.used_bytes, printable(block.name), block.used_bytes);
    }
    guest_bytes += block.used_bytes;
  }
  if (guest_bytes != manifest.guest_bytes) {
    return make_error(ErrorKind::kDamaged, "the manifest says {} bytes of guest memory, its blocks have {}",
                      manifest.guest_bytes, guest_bytes);
  }
  return {};
}

}  // namespace

const ObjectRecord& CheckpointReader::record(std::string_view name) const {
  // decode_manifest() refuses a manifest without "memory" and "device".
  const auto found = std::find_if(manifest_.objects.begin(), manifest_.objects.end(),
                                  [name](const ObjectRecord& object) { return object.name == name; });
  VMSIEVE_CHECK(found != manifest_.objects.end());
  return *found;
}

/// Opens a memory object and checks both its ends; before that its size, where that is known.
Result<CheckpointReader::Memory> CheckpointReader::open_memory(const Store& store, const std::string& id,
                                                               std::optional<u64> expected_bytes) {
  const std::string context = object_context(id, "memory");
  Memory memory;
  memory.id = id;
  VMSIEVE_ASSIGN(memory.object, open_object(store, id, "memory"));
  const u64 size = memory.object->size();
  if (expected_bytes && size != *expected_bytes) {
    return make_error(ErrorKind::kDamaged, "{}: it has {} bytes, the manifest says {}", context, size,
                      *expected_bytes);
  }
  if (size < kMemoryHeaderBytes + kMemoryTrailerBytes) {
    return make_error(ErrorKind::kDamaged, "{}: its {} bytes are too few for header and trailer", context,
                      size);
  }
  VMSIEVE_ASSIGN(const auto header, read_whole(*memory.object, 0, kMemoryHeaderBytes));
  if (auto checked = check_memory_header(header, id); !checked.ok()) {
    return checked.error().with_context(context + ", offset 0x0");
  }
  const u64 trailer_offset = size - kMemoryTrailerBytes;
  VMSIEVE_ASSIGN(const auto bytes, read_whole(*memory.object, trailer_offset, kMemoryTrailerBytes));
  auto trailer = decode_memory_trailer(bytes, size);
  if (!trailer.ok())
    return trailer.error().with_context(fmt::format("{}, offset {:#x}", context, trailer_offset));
  memory.trailer = *trailer;
  return memory;
}

Result<void> CheckpointReader::open_objects(const Store& store) {
  u64 stored_bytes = 0;  // a wrap-around only makes the sums differ
  for (const ObjectRecord& said : manifest_.objects) {
    std::unique_ptr<ObjectReader> object;
    if (said.name == "memory") {
      VMSIEVE_ASSIGN(Memory memory, open_memory(store, manifest_.id, said.bytes));
      memories_.push_back(std::move(memory));
    } else {
      VMSIEVE_ASSIGN(object, open_object(store, manifest_.id, said.name));
      if (object->size() != said.bytes) {
        return make_error(ErrorKind::kDamaged, "{}: it has {} bytes, the manifest says {}",
                          object_context(manifest_.id, said.name), object->size(), said.bytes);
      }
    }
    stored_bytes += said.bytes;
    objects_.push_back(std::move(object));
  }
  if (stored_bytes != manifest_.stored_bytes) {
    return make_error(ErrorKind::kDamaged,
                      "checkpoint {}: the manifest says {} stored bytes, its objects have {}", manifest_.id,
                      manifest_.stored_bytes, stored_bytes);
  }
  return {};
}

/// The encoded index, checked against both checksums of it.
Result<std::vector<std::byte>> CheckpointReader::read_index_bytes() const {
  const Memory& own = memories_.front();
  const std::string context = fmt::format("{}, index at offset {:#x}", object_context(manifest_.id, "memory"),
                                          own.trailer.index_offset);
  auto bytes = read_whole(*own.object, own.trailer.index_offset, own.trailer.index_bytes);
  if (!bytes.ok()) return bytes.error().with_context(context);
  const u64 computed = checksum(*bytes);
  for (const auto& [where, said] :
       {std::pair{"trailer", own.trailer.index_checksum}, std::pair{"manifest", record("memory").checksum}}) {
    if (computed != said) {
      return make_error(ErrorKind::kDamaged, "{}: its checksum is {:016x} in the {}, its bytes give {:016x}",
                        context, said, where, computed);
    }
  }
  return bytes;
}

/// The index against manifest and objects.
Result<void> CheckpointReader::check_index() const {
  if (index_.ancestors != manifest_.ancestors) {
    return make_error(ErrorKind::kDamaged, "the manifest and the index do not name the same ancestors");
  }
  VMSIEVE_TRY(check_blocks(manifest_, index_));
  VMSIEVE_TRY(check_counts(manifest_, index_));
  for (u64 i = 0; i < index_.frames.size(); ++i) {
    const Frame& frame = index_.frames[i];
    const Memory& memory = memories_[frame.object];
    if (frame.offset + frame.stored_bytes > memory.trailer.index_offset) {
      return frame_error(i, make_error(ErrorKind::kDamaged, "it goes beyond the index at {:#x}",
                                       memory.trailer.index_offset));
    }
  }
  return {};
}

Result<std::unique_ptr<CheckpointReader>> CheckpointReader::open(const Store& store, const std::string& id) {
  auto reader = open_all(store, id);
  // Nothing is taken from an object that is open. Before that, bytes may have gone if the checkpoint was
  // being removed: then it is not damaged, but not there.
  const auto still_there = store.manifest(id);
  if (!still_there.ok() && still_there.error().kind() == ErrorKind::kNotFound) return still_there.error();
  return reader;
}

Result<std::unique_ptr<CheckpointReader>> CheckpointReader::open_all(const Store& store,
                                                                     const std::string& id) {
  std::unique_ptr<CheckpointReader> reader{new CheckpointReader};
  VMSIEVE_ASSIGN(reader->manifest_, store.manifest(id));
  VMSIEVE_TRY(reader->open_objects(store));
  {
    VMSIEVE_ASSIGN(const std::vector<std::byte> bytes, reader->read_index_bytes());
    auto index = decode_index(bytes);
    if (!index.ok()) return index.error().with_context(object_context(id, "memory"));
    reader->index_ = std::move(*index);
  }
  for (const std::string& ancestor : reader->index_.ancestors) {
    auto memory = open_memory(store, ancestor, std::nullopt);
    if (!memory.ok()) {
      // An ancestor that is gone is damage of this checkpoint, not "no such checkpoint".
      const bool gone = memory.error().kind() == ErrorKind::kNotFound;
      return Error{
          gone ? ErrorKind::kDamaged : memory.error().kind(),
          fmt::format("checkpoint {} needs checkpoint {}: {}", id, ancestor, memory.error().message())};
    }
    reader->memories_.push_back(std::move(*memory));
  }
  if (auto checked = reader->check_index(); !checked.ok()) {
    return checked.error().with_context(fmt::format("checkpoint {}", id));
  }
  return reader;
}

Error CheckpointReader::frame_error(u64 frame, const Error& error) const {
  const Frame& f = index_.frames[frame];
  return error.with_context(fmt::format("{}, frame {} at offset {:#x}",
                                        object_context(memories_[f.object].id, "memory"), frame, f.offset));
}

Result<std::span<const std::byte>> CheckpointReader::read_frame(u64 frame, Scratch& scratch) const {
  if (frame >= index_.frames.size()) {
    return make_error(ErrorKind::kUsage, "checkpoint {} has no frame {}", manifest_.id, frame);
  }
  const Frame& f = index_.frames[frame];
  scratch.stored.resize(f.stored_bytes);
  auto read = memories_[f.object].object->read(f.offset, scratch.stored);
  if (!read.ok()) return frame_error(frame, read.error());
  auto decoded = decode_frame(f, scratch.stored, scratch.decoded);
  if (!decoded.ok()) return frame_error(frame, decoded.error());
  return std::span<const std::byte>{scratch.decoded};
}

Result<std::vector<std::byte>> CheckpointReader::device_state() const {
  if (manifest_.mode == Manifest::kDumpMode) {
    return make_error(
        ErrorKind::kUnsupported,
        "checkpoint {} was made of a dump, which holds no device state: it can be looked at, but "
        "no guest can be brought back from it",
        manifest_.id);
  }
  const ObjectRecord& said = record("device");
  const ObjectReader& object = *objects_[static_cast<std::size_t>(&said - manifest_.objects.data())];
  const std::string context = object_context(manifest_.id, "device");
  auto bytes = read_whole(object, 0, object.size());
  if (!bytes.ok()) return bytes.error().with_context(context);
  if (const u64 computed = checksum(*bytes); computed != said.checksum) {
    return make_error(ErrorKind::kDamaged, "{}: its checksum is {:016x}, its bytes give {:016x}", context,
                      said.checksum, computed);
  }
  return bytes;
}

/// One pass over everything, in the order in which it lies on the disk.
class CheckpointReader::Verification {
 public:
  Verification(const CheckpointReader& reader, const Progress& progress)
      : reader_(reader), progress_(progress) {
    total_ = reader.manifest_.stored_bytes;
    for (const Frame& frame : reader.index_.frames) total_ += frame.object != 0 ? frame.stored_bytes : 0;
  }

  Result<void> run();
  Result<void> check_whole_object(const ObjectRecord& said, const ObjectReader& object);

 private:
  static constexpr u64 kChunk = kMiB;

  void advance(u64 bytes);
  Result<void> check_ends();
  Result<void> check_zeros(u64 offset, u64 end);

  const CheckpointReader& reader_;
  const Progress& progress_;
  std::vector<std::byte> chunk_;
  u64 done_ = 0;
  u64 told_ = 0;
  u64 total_ = 0;
};

void CheckpointReader::Verification::advance(u64 bytes) {
  done_ += bytes;
  if (!progress_ || (done_ - told_ < kChunk && done_ != total_)) return;
  told_ = done_;
  progress_(done_, total_);
}

/// Header, index and trailer once more: they may have changed since the checkpoint was opened.
Result<void> CheckpointReader::Verification::check_ends() {
  const Memory& own = reader_.memories_.front();
  const std::string context = object_context(own.id, "memory");
  VMSIEVE_ASSIGN(const auto header, read_whole(*own.object, 0, kMemoryHeaderBytes));
  if (auto checked = check_memory_header(header, own.id); !checked.ok()) {
    return checked.error().with_context(context + ", offset 0x0");
  }
  const u64 trailer_offset = own.object->size() - kMemoryTrailerBytes;
  VMSIEVE_ASSIGN(const auto bytes, read_whole(*own.object, trailer_offset, kMemoryTrailerBytes));
  const auto trailer = decode_memory_trailer(bytes, own.object->size());
  if (!trailer.ok())
    return trailer.error().with_context(fmt::format("{}, offset {:#x}", context, trailer_offset));
  VMSIEVE_TRY(reader_.read_index_bytes());
  advance(own.object->size() - own.trailer.index_offset + kMemoryHeaderBytes);
  return {};
}

Result<void> CheckpointReader::Verification::check_zeros(u64 offset, u64 end) {
  const Memory& own = reader_.memories_.front();
  while (offset < end) {
    chunk_.resize(std::min(kChunk, end - offset));
    VMSIEVE_TRY(own.object->read(offset, chunk_));
    const auto wrong =
        std::find_if(chunk_.begin(), chunk_.end(), [](std::byte b) { return b != std::byte{0}; });
    if (wrong != chunk_.end()) {
      return make_error(ErrorKind::kDamaged,
                        "{}, offset {:#x}: a byte between frames is {:#04x}, must be zero",
                        object_context(own.id, "memory"), offset + static_cast<u64>(wrong - chunk_.begin()),
                        static_cast<unsigned>(*wrong));
    }
    offset += chunk_.size();
    advance(chunk_.size());
  }
  return {};
}

Result<void> CheckpointReader::Verification::check_whole_object(const ObjectRecord& said,
                                                                const ObjectReader& object) {
  StreamingChecksum sum;
  for (u64 offset = 0; offset < object.size(); offset += chunk_.size()) {
    chunk_.resize(std::min(kChunk, object.size() - offset));
    VMSIEVE_TRY(object.read(offset, chunk_));
    sum.update(chunk_);
    advance(chunk_.size());
  }
  if (sum.value() != said.checksum) {
    return make_error(ErrorKind::kDamaged, "{}: its checksum is {:016x}, its bytes give {:016x}",
                      object_context(reader_.manifest_.id, said.name), said.checksum, sum.value());
  }
  return {};
}

Result<void> CheckpointReader::Verification::run() {
  VMSIEVE_TRY(check_ends());
  Scratch scratch;
  u64 end = kMemoryHeaderBytes;
  const std::vector<Frame>& frames = reader_.index_.frames;
  for (u64 i = 0; i < frames.size(); ++i) {
    if (frames[i].object == 0) {
      // Frames of object 0 ascend without overlap: validate() saw to it.
      VMSIEVE_TRY(check_zeros(end, frames[i].offset));
      end = frames[i].offset + frames[i].stored_bytes;
    }
    VMSIEVE_TRY(reader_.read_frame(i, scratch));
    advance(frames[i].stored_bytes);
  }
  VMSIEVE_TRY(check_zeros(end, reader_.memories_.front().trailer.index_offset));
  for (u64 i = 0; i < reader_.objects_.size(); ++i) {
    if (!reader_.objects_[i]) continue;  // "memory"
    VMSIEVE_TRY(check_whole_object(reader_.manifest_.objects[i], *reader_.objects_[i]));
  }
  return {};
}

Result<void> CheckpointReader::verify(const Progress& progress) const {
  return Verification{*this, progress}.run();
}

Result<void> CheckpointReader::verify_object(const ObjectRecord& said) const {
  const Progress nobody;
  return Verification{*this, nobody}.check_whole_object(
      said, *objects_[static_cast<std::size_t>(&record(said.name) - manifest_.objects.data())]);
}

}  // namespace vmsieve
