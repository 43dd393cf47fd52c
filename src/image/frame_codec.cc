// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/image/frame_codec.h"

#include <charconv>
#include <cstring>

#include <lz4.h>
// The state's layout, to hold it by value.
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>
#include <zstd.h>

namespace vmsieve {
namespace {

constexpr int kMaxZstdLevel = 19;

/// Of a frame of many pages so many are looked at first, spread over it. A frame in which none of them can be
/// made smaller is not compressed: trying takes as long as when it works.
constexpr std::size_t kSamplePages = 8;

/// Stored bytes that are worth the time of decoding them.
constexpr bool is_worth_it(std::size_t stored, std::size_t raw) { return stored <= raw - raw / 16; }

struct FreeCompressor {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
};
struct FreeDecompressor {
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

Result<void> decode_zstd(std::span<const std::byte> stored, std::span<std::byte> out) {
  // The library would also take several frames in a row, and skippable ones: the format says one.
  if (ZSTD_findFrameCompressedSize(stored.data(), stored.size()) != stored.size()) {
    return make_error(ErrorKind::kDamaged, "the stored bytes are not one Zstandard frame");
  }
  // Making a context costs more than decoding a page; one per thread is kept.
  thread_local const std::unique_ptr<ZSTD_DCtx, FreeDecompressor> context{ZSTD_createDCtx()};
  if (!context) return make_error(ErrorKind::kIo, "no memory for a Zstandard decoder");
  const std::size_t size =
      ZSTD_decompressDCtx(context.get(), out.data(), out.size(), stored.data(), stored.size());
  if (ZSTD_isError(size) != 0) {
    return make_error(ErrorKind::kDamaged, "Zstandard cannot decode it: {}", ZSTD_getErrorName(size));
  }
  if (size != out.size()) {
    return make_error(ErrorKind::kDamaged, "it decodes to {} bytes instead of {}", size, out.size());
  }
  return {};
}

Result<void> decode_lz4(std::span<const std::byte> stored, std::span<std::byte> out) {
  const int size =
      LZ4_decompress_safe(reinterpret_cast<const char*>(stored.data()), reinterpret_cast<char*>(out.data()),
                          static_cast<int>(stored.size()), static_cast<int>(out.size()));
  if (size < 0) return make_error(ErrorKind::kDamaged, "LZ4 cannot decode it");
  if (static_cast<std::size_t>(size) != out.size()) {
    return make_error(ErrorKind::kDamaged, "it decodes to {} bytes instead of {}", size, out.size());
  }
  return {};
}

}  // namespace

Result<Compression> Compression::parse(std::string_view text) {
  if (text == "none") return Compression{Codec::kNone, 1};
  if (text == "lz4") return Compression{Codec::kLz4, 1};
  if (text == "zstd") return Compression{Codec::kZstd, 1};
  constexpr std::string_view kPrefix = "zstd:";
  if (text.starts_with(kPrefix)) {
    const std::string_view digits = text.substr(kPrefix.size());
    int level = 0;
    const auto [end, fault] = std::from_chars(digits.data(), digits.data() + digits.size(), level);
    if (fault == std::errc{} && end == digits.data() + digits.size() && level >= 1 &&
        level <= kMaxZstdLevel) {
      return Compression{Codec::kZstd, level};
    }
  }
  return make_error(ErrorKind::kUsage, "compression '{}' is not none, lz4, zstd or zstd:1 to zstd:{}", text,
                    kMaxZstdLevel);
}

std::string Compression::text() const {
  if (codec == Codec::kZstd) return fmt::format("zstd:{}", level);
  return std::string{to_string(codec)};
}

struct FrameEncoder::Impl {
  Compression compression;
  std::unique_ptr<ZSTD_CCtx, FreeCompressor> zstd;
  std::vector<char> lz4;
  std::vector<std::byte> scratch;  ///< room for the worst case, which makes both libraries faster

  /// Bytes put into `scratch`, 0 when it does not work.
  std::size_t compress(std::span<const std::byte> raw);
  /// Bytes put into `scratch`, 0 when it does not work. By LZ4, the fastest there is.
  std::size_t compress_fast(std::span<const std::byte> raw);
  /// May it be worth to compress this?
  bool promises(std::span<const std::byte> raw);
};

std::size_t FrameEncoder::Impl::compress_fast(std::span<const std::byte> raw) {
  scratch.resize(static_cast<std::size_t>(LZ4_compressBound(static_cast<int>(kMaxFrameBytes))));
  const int size = LZ4_compress_fast_extState(
      lz4.data(), reinterpret_cast<const char*>(raw.data()), reinterpret_cast<char*>(scratch.data()),
      static_cast<int>(raw.size()), static_cast<int>(scratch.size()), 1);
  return size < 0 ? 0 : static_cast<std::size_t>(size);
}

bool FrameEncoder::Impl::promises(std::span<const std::byte> raw) {
  const std::size_t pages = raw.size() / kPageSize;
  if (pages < 2 * kSamplePages) return true;
  for (std::size_t i = 0; i < kSamplePages; ++i) {
    const auto page = raw.subspan(i * pages / kSamplePages * kPageSize, kPageSize);
    const std::size_t size = compress_fast(page);
    if (size != 0 && is_worth_it(size, page.size())) return true;
  }
  return false;
}

std::size_t FrameEncoder::Impl::compress(std::span<const std::byte> raw) {
  if (compression.codec == Codec::kZstd) {
    scratch.resize(ZSTD_compressBound(kMaxFrameBytes));
    const std::size_t size = ZSTD_compressCCtx(zstd.get(), scratch.data(), scratch.size(), raw.data(),
                                               raw.size(), compression.level);
    return ZSTD_isError(size) != 0 ? 0 : size;
  }
  return compress_fast(raw);
}

FrameEncoder::FrameEncoder(Compression compression) : impl_(std::make_unique<Impl>()) {
  impl_->compression = compression;
  if (compression.codec == Codec::kZstd) {
    impl_->zstd.reset(ZSTD_createCCtx());
    VMSIEVE_CHECK(impl_->zstd != nullptr);
  }
  impl_->lz4.resize(static_cast<std::size_t>(LZ4_sizeofState()));
}
FrameEncoder::~FrameEncoder() = default;
FrameEncoder::FrameEncoder(FrameEncoder&&) noexcept = default;

Frame FrameEncoder::encode_or_keep(std::span<const std::byte> raw, std::vector<std::byte>& out) {
  VMSIEVE_CHECK(!raw.empty() && raw.size() <= kMaxFrameBytes && raw.size() % kPageSize == 0);
  Frame frame;
  frame.raw_bytes = raw.size();
  out.clear();
  if (impl_->compression.codec != Codec::kNone && impl_->promises(raw)) {
    const std::size_t size = impl_->compress(raw);
    if (size != 0 && is_worth_it(size, raw.size())) {
      frame.codec = impl_->compression.codec;
      const auto stored = std::span<const std::byte>{impl_->scratch}.first(size);
      out.assign(stored.begin(), stored.end());
    }
  }
  const std::span<const std::byte> stored = out.empty() ? raw : std::span<const std::byte>{out};
  frame.stored_bytes = stored.size();
  frame.checksum = checksum(stored);
  return frame;
}

Frame FrameEncoder::encode(std::span<const std::byte> raw, std::vector<std::byte>& out) {
  const Frame frame = encode_or_keep(raw, out);
  if (frame.codec == Codec::kNone) out.assign(raw.begin(), raw.end());
  return frame;
}

Result<void> decode_frame(const Frame& frame, std::span<const std::byte> stored,
                          std::vector<std::byte>& out) {
  if (frame.raw_bytes == 0 || frame.raw_bytes > kMaxFrameBytes || frame.raw_bytes % kPageSize != 0) {
    return make_error(ErrorKind::kDamaged, "a frame of {} decoded bytes is not 1 to 256 pages",
                      frame.raw_bytes);
  }
  if (stored.empty() || stored.size() != frame.stored_bytes || stored.size() > frame.raw_bytes) {
    return make_error(ErrorKind::kDamaged, "{} stored bytes are there, the frame has {} and decodes to {}",
                      stored.size(), frame.stored_bytes, frame.raw_bytes);
  }
  if (const u64 computed = checksum(stored); computed != frame.checksum) {
    return make_error(ErrorKind::kDamaged, "its checksum is {:016x}, its bytes give {:016x}", frame.checksum,
                      computed);
  }
  switch (frame.codec) {
    case Codec::kNone:
      if (frame.stored_bytes != frame.raw_bytes) {
        return make_error(ErrorKind::kDamaged, "it is not compressed, but its sizes {} and {} differ",
                          frame.stored_bytes, frame.raw_bytes);
      }
      out.assign(stored.begin(), stored.end());
      return {};
    case Codec::kLz4: out.resize(frame.raw_bytes); return decode_lz4(stored, out);
    case Codec::kZstd: out.resize(frame.raw_bytes); return decode_zstd(stored, out);
  }
  return make_error(ErrorKind::kDamaged, "its codec {} is unknown", static_cast<unsigned>(frame.codec));
}

u64 checksum(std::span<const std::byte> bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

struct StreamingChecksum::State {
  XXH3_state_t hash;
};

StreamingChecksum::StreamingChecksum() : state_(std::make_unique<State>()) {
  VMSIEVE_CHECK(XXH3_64bits_reset(&state_->hash) == XXH_OK);
}
StreamingChecksum::~StreamingChecksum() = default;

void StreamingChecksum::update(std::span<const std::byte> bytes) {
  VMSIEVE_CHECK(XXH3_64bits_update(&state_->hash, bytes.data(), bytes.size()) == XXH_OK);
}

u64 StreamingChecksum::value() const { return XXH3_64bits_digest(&state_->hash); }

std::optional<u8> uniform_byte(std::span<const std::byte> page) {
  VMSIEVE_CHECK(page.size() == kPageSize);
  const auto load = [&page](std::size_t at) {
    u64 word = 0;
    std::memcpy(&word, page.data() + at, sizeof word);
    return word;
  };
  // Nearly every page that is not uniform differs in its first words; the rest goes by cache lines, in a
  // form that compilers turn into vector compares.
  const u64 pattern = static_cast<u64>(page[0]) * 0x0101010101010101;
  if (load(0) != pattern) return std::nullopt;
  for (std::size_t line = 0; line < kPageSize; line += 64) {
    u64 difference = 0;
    for (std::size_t i = 0; i < 64; i += 8) difference |= load(line + i) ^ pattern;
    if (difference != 0) return std::nullopt;
  }
  return static_cast<u8>(page[0]);
}

}  // namespace vmsieve
