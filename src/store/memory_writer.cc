// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/memory_writer.h"

#include <array>
#include <utility>

#include "vmsieve/image/frame_codec.h"

namespace vmsieve {

MemoryObjectWriter::MemoryObjectWriter(ObjectWriter& object, std::string id)
    : object_(object), id_(std::move(id)) {
  VMSIEVE_CHECK(is_checkpoint_id(id_));
}

Result<void> MemoryObjectWriter::append(std::span<const std::byte> bytes) {
  auto appended = object_.append(bytes);
  if (!appended.ok()) failed_ = appended.error();
  return appended;
}

Result<void> MemoryObjectWriter::start() {
  if (failed_) return *failed_;
  if (finished_)
    return make_error(ErrorKind::kUsage, "the memory object of checkpoint {} is finished already", id_);
  if (std::exchange(started_, true)) return {};
  return append(encode_memory_header(id_));
}

Result<void> MemoryObjectWriter::pad_to_page() {
  static constexpr std::array<std::byte, kPageSize> kZeros{};
  const u64 size = object_.size();
  return append(std::span{kZeros}.first(round_up(size, kPageSize) - size));
}

Result<void> MemoryObjectWriter::begin_frame(Frame& frame, std::size_t bytes) {
  VMSIEVE_TRY(start());
  if (bytes != frame.stored_bytes) {
    return make_error(ErrorKind::kUsage, "checkpoint {}: a frame of {} stored bytes came with {}", id_,
                      frame.stored_bytes, bytes);
  }
  if (frame.codec == Codec::kNone) VMSIEVE_TRY(pad_to_page());
  frame.object = 0;
  frame.offset = object_.size();
  return {};
}

Result<u64> MemoryObjectWriter::add_frame(Frame frame, std::span<const std::byte> stored) {
  VMSIEVE_TRY(begin_frame(frame, stored.size()));
  VMSIEVE_TRY(append(stored));
  index_.frames.push_back(frame);
  return u64{index_.frames.size() - 1};
}

Result<u64> MemoryObjectWriter::add_frame_in_place(Frame frame, std::span<const std::byte> raw,
                                                   std::function<void()> release) {
  VMSIEVE_CHECK(frame.codec == Codec::kNone);
  if (auto begun = begin_frame(frame, raw.size()); !begun) {
    release();
    return begun.error();
  }
  if (auto appended = object_.append_in_place(raw, std::move(release)); !appended) {
    failed_ = appended.error();
    return *failed_;
  }
  index_.frames.push_back(frame);
  return u64{index_.frames.size() - 1};
}

Result<u64> MemoryObjectWriter::add_ancestor_frame(const std::string& ancestor, Frame frame) {
  VMSIEVE_TRY(start());
  if (ancestor == id_ || !is_checkpoint_id(ancestor)) {
    return make_error(ErrorKind::kUsage, "checkpoint {}: '{}' cannot be its ancestor", id_, ancestor);
  }
  const auto [entry, is_new] =
      ancestor_numbers_.try_emplace(ancestor, static_cast<u32>(index_.ancestors.size() + 1));
  if (is_new) index_.ancestors.push_back(ancestor);
  frame.object = entry->second;
  index_.frames.push_back(frame);
  return u64{index_.frames.size() - 1};
}

Result<ObjectRecord> MemoryObjectWriter::finish(std::vector<BlockIndex> blocks) {
  VMSIEVE_TRY(start());
  index_.blocks = std::move(blocks);
  if (auto valid = validate(index_); !valid.ok()) {
    failed_ = Error{ErrorKind::kUsage, fmt::format("checkpoint {}: the index to write is wrong: {}", id_,
                                                   valid.error().message())};
    return *failed_;
  }
  VMSIEVE_TRY(pad_to_page());
  const std::vector<std::byte> encoded = encode_index(index_);
  const MemoryTrailer trailer{
      .index_offset = object_.size(), .index_bytes = encoded.size(), .index_checksum = checksum(encoded)};
  VMSIEVE_TRY(append(encoded));
  VMSIEVE_TRY(append(encode_memory_trailer(trailer)));
  if (auto finished = object_.finish(); !finished.ok()) {
    failed_ = finished.error();
    return *failed_;
  }
  finished_ = true;
  return ObjectRecord{.name = "memory", .bytes = object_.size(), .checksum = trailer.index_checksum};
}

}  // namespace vmsieve
