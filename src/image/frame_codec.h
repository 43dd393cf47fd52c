// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/image/memory_index.h"

namespace vmsieve {

/// How to compress: codec and level. Parsed from `none`, `lz4`, `zstd`, `zstd:LEVEL`.
struct Compression {
  Codec codec = Codec::kZstd;
  int level = 1;  ///< zstd only: 1 to 19

  /// kUsage says what is possible.
  static Result<Compression> parse(std::string_view text);
  /// `none`, `lz4` or `zstd:LEVEL`; parse() gives the same again.
  std::string text() const;
};

/// Compresses frames; one object per thread (it keeps the library's working memory).
class FrameEncoder {
 public:
  explicit FrameEncoder(Compression compression);
  ~FrameEncoder();
  FrameEncoder(FrameEncoder&&) noexcept;

  /// Encodes `raw` (1 to kMaxFrameBytes, whole pages) into `out` (replaced) and returns the frame with
  /// codec, stored_bytes, raw_bytes and checksum set. Where compressing does not make it smaller
  /// by at least 1/16, the frame is stored as it is (Codec::kNone).
  Frame encode(std::span<const std::byte> raw, std::vector<std::byte>& out);
  /// The same, but a frame that is stored as it is is not copied: `out` is then empty, and what is to be
  /// stored is `raw`.
  Frame encode_or_keep(std::span<const std::byte> raw, std::vector<std::byte>& out);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Checks the stored bytes' checksum and decodes; `out` gets exactly frame.raw_bytes bytes.
/// kDamaged when either fails, or when the frame breaks the format's bounds; `out` is then unspecified.
/// Thread-safe.
Result<void> decode_frame(const Frame& frame, std::span<const std::byte> stored, std::vector<std::byte>& out);

/// XXH3-64 with seed 0, the checksum of every structure of the format.
u64 checksum(std::span<const std::byte> bytes);

/// The same of bytes that come in pieces. Not thread-safe.
class StreamingChecksum {
 public:
  StreamingChecksum();
  ~StreamingChecksum();
  void update(std::span<const std::byte> bytes);
  /// Of all bytes so far.
  u64 value() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// If every byte of the page (kPageSize bytes) is the same, that byte; else nothing.
std::optional<u8> uniform_byte(std::span<const std::byte> page);

}  // namespace vmsieve
