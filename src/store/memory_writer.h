// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/image/manifest.h"
#include "vmsieve/image/memory_index.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

/// Writes a memory object: header, frames with their alignment, index, trailer. Not thread-safe: one thread
/// writes what others have compressed. After an error the object is lost and every later call fails too.
class MemoryObjectWriter {
 public:
  /// `object`: empty, and only used through this from now on; must outlive this. `id`: the checkpoint's.
  MemoryObjectWriter(ObjectWriter& object, std::string id);

  /// Appends a frame as FrameEncoder::encode() made it (codec, stored_bytes, raw_bytes, checksum set; object
  /// and offset are set here). Returns its number for PageRun::frame.
  Result<u64> add_frame(Frame frame, std::span<const std::byte> stored);

  /// The same of a frame that is stored as it is (Codec::kNone), its bytes where they are:
  /// ObjectWriter::append_in_place(). `release` is called also when this fails.
  Result<u64> add_frame_in_place(Frame frame, std::span<const std::byte> raw, std::function<void()> release);
  /// ObjectWriter::settle_one().
  bool settle_one() { return object_.settle_one(); }

  /// Refers to a frame in the memory object of checkpoint `ancestor` (offset and all else as in that one's
  /// index).
  Result<u64> add_ancestor_frame(const std::string& ancestor, Frame frame);

  /// Writes index and trailer and makes the object durable. kUsage when the runs are not as the format wants
  /// them (validate()). The record goes into Manifest::objects.
  Result<ObjectRecord> finish(std::vector<BlockIndex> blocks);

  /// For Manifest::ancestors.
  const std::vector<std::string>& ancestors() const { return index_.ancestors; }
  /// The index; complete after finish().
  const MemoryIndex& index() const { return index_; }

 private:
  Result<void> append(std::span<const std::byte> bytes);
  Result<void> begin_frame(Frame& frame, std::size_t bytes);
  Result<void> start();
  Result<void> pad_to_page();

  ObjectWriter& object_;
  std::string id_;
  MemoryIndex index_;
  std::unordered_map<std::string, u32> ancestor_numbers_;
  bool started_ = false;
  bool finished_ = false;
  std::optional<Error> failed_;
};

}  // namespace vmsieve
