// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/image/manifest.h"
#include "vmsieve/image/memory_index.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

/// A committed checkpoint, opened for reading. Everything that describes the checkpoint is read and checked
/// when it is opened; frames and device state are checked as they are read. So whatever comes out of here is
/// what was saved, or an error that names the object, the offset and what is wrong.
///
/// All const methods may be called from several threads at once. The store is needed by open() only. A
/// checkpoint that is removed while it is open stays readable in a directory store, its ancestors too.
class CheckpointReader {
 public:
  /// Working memory of read_frame(), one per thread; keeps its capacity from frame to frame.
  struct Scratch {
    std::vector<std::byte> stored;
    std::vector<std::byte> decoded;
  };
  using Progress = std::function<void(u64 bytes_done, u64 bytes_total)>;

  /// Reads and checks the manifest, the sizes of all objects, header, trailer and index of the memory object,
  /// and that they agree: the index's checksum with the manifest's, block names, sizes and order, pages per
  /// class, ancestors. Opens the memory objects of the ancestors. kNotFound when there is no such checkpoint,
  /// kUnsupported when it needs a newer program, kDamaged for all else that does not fit.
  static Result<std::unique_ptr<CheckpointReader>> open(const Store& store, const std::string& id);

  const Manifest& manifest() const { return manifest_; }
  const MemoryIndex& index() const { return index_; }
  /// Where frames end and the index starts in the memory object that Frame::object calls `object`: an offset.
  u64 frames_end(u64 object) const { return memories_[object].trailer.index_offset; }

  /// Reads frame `frame` of index().frames, checks and decodes it. The bytes (raw_bytes of them) are in
  /// `scratch.decoded` until its next use.
  Result<std::span<const std::byte>> read_frame(u64 frame, Scratch& scratch) const;

  /// Tells that all frames will be read, once: ObjectReader::expect_one_pass(). Not beside other calls.
  void expect_one_pass() const {
    for (const Memory& memory : memories_) memory.object->expect_one_pass();
  }

  /// QEMU's device state, checked against the manifest's checksum.
  Result<std::vector<std::byte>> device_state() const;

  /// Reads every byte of every object of this checkpoint, and every frame that it needs of its ancestors:
  /// header, frames (their checksums, and that they decode), zeros between them, index, trailer, device
  /// state. Stops at the first damage and names it. `progress` (may be empty) is called about once per MiB,
  /// and at the end with bytes_done == bytes_total.
  Result<void> verify(const Progress& progress = {}) const;
  /// The same of one object of this checkpoint, which is not `memory`.
  Result<void> verify_object(const ObjectRecord& said) const;

 private:
  struct Memory {
    std::string id;
    std::unique_ptr<ObjectReader> object;
    MemoryTrailer trailer;
  };
  class Verification;

  CheckpointReader() = default;
  static Result<std::unique_ptr<CheckpointReader>> open_all(const Store& store, const std::string& id);
  static Result<Memory> open_memory(const Store& store, const std::string& id,
                                    std::optional<u64> expected_bytes);
  Result<void> open_objects(const Store& store);
  Result<std::vector<std::byte>> read_index_bytes() const;
  Result<void> check_index() const;
  const ObjectRecord& record(std::string_view name) const;
  Error frame_error(u64 frame, const Error& error) const;

  Manifest manifest_;
  MemoryIndex index_;
  std::vector<Memory> memories_;  ///< by Frame::object: this one's, then the ancestors'
  std::vector<std::unique_ptr<ObjectReader>>
      objects_;  ///< by position in Manifest::objects; none for "memory"
};

}  // namespace vmsieve
