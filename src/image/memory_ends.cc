// SPDX-License-Identifier: Apache-2.0
// The fixed-size structures at both ends of a memory object.
#include <algorithm>
#include <bit>

#include "vmsieve/base/endian.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/manifest.h"
#include "vmsieve/image/memory_index.h"

namespace vmsieve {
namespace {

constexpr std::string_view kHeaderMagic = "VMSIEVEM";
constexpr std::string_view kTrailerMagic = "VMSIEVET";
constexpr u64 kEndsVersion = 1;
constexpr u64 kKnownEndsFeatures = 0;
constexpr u64 kOwnerOffset = 48;
constexpr u64 kOwnerBytes = 16;
constexpr u64 kReservedOffset = 64;
constexpr u64 kTrailerReservedOffset = 40;

/// Size, magic, the checksum in the last eight bytes, then the version: nothing else is looked at before.
Result<void> check_envelope(std::span<const std::byte> bytes, u64 size, std::string_view magic,
                            std::string_view what) {
  if (bytes.size() != size) {
    return make_error(ErrorKind::kDamaged, "the {} has {} bytes instead of {}", what, bytes.size(), size);
  }
  if (std::memcmp(bytes.data(), magic.data(), magic.size()) != 0) {
    return make_error(ErrorKind::kDamaged, "the {}'s magic is missing", what);
  }
  const u64 stored = load_le<u64>(bytes.data() + size - 8);
  const u64 computed = checksum(bytes.first(size - 8));
  if (stored != computed) {
    return make_error(ErrorKind::kDamaged, "the {}'s checksum is {:016x}, its bytes give {:016x}", what,
                      stored, computed);
  }
  const u64 version = load_le<u64>(bytes.data() + 8);
  if (version != kEndsVersion) {
    return make_error(ErrorKind::kUnsupported, "the {}'s version {} is not the version {} that is understood",
                      what, version, kEndsVersion);
  }
  return {};
}

bool all_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

}  // namespace

std::vector<std::byte> encode_memory_header(std::string_view id) {
  VMSIEVE_CHECK(is_checkpoint_id(id));
  std::vector<std::byte> out;
  out.reserve(kMemoryHeaderBytes);
  append_bytes(out, as_byte_span(kHeaderMagic));
  append_le(out, kEndsVersion);
  append_le(out, kMemoryHeaderBytes);
  append_le(out, kPageSize);
  append_le(out, u64{0});  // required features
  append_le(out, u64{0});  // optional features
  append_bytes(out, as_byte_span(id));
  out.resize(kMemoryHeaderBytes - 8);
  append_le(out, checksum(out));
  return out;
}

Result<void> check_memory_header(std::span<const std::byte> bytes, std::string_view id) {
  VMSIEVE_TRY(check_envelope(bytes, kMemoryHeaderBytes, kHeaderMagic, "header"));
  const u64 unknown = load_le<u64>(bytes.data() + 32) & ~kKnownEndsFeatures;
  if (unknown != 0) {
    return make_error(ErrorKind::kUnsupported, "the header requires feature bit {}, which is unknown",
                      std::countr_zero(unknown));
  }
  const u64 header_bytes = load_le<u64>(bytes.data() + 16);
  const u64 page_bytes = load_le<u64>(bytes.data() + 24);
  if (header_bytes != kMemoryHeaderBytes || page_bytes != kPageSize) {
    return make_error(ErrorKind::kDamaged,
                      "the header says {} bytes of header and {} per page, not {} and {}", header_bytes,
                      page_bytes, kMemoryHeaderBytes, kPageSize);
  }
  const std::string owner(reinterpret_cast<const char*>(bytes.data()) + kOwnerOffset, kOwnerBytes);
  if (!is_checkpoint_id(owner)) {
    return make_error(ErrorKind::kDamaged, "the header holds no checkpoint id");
  }
  if (owner != id) {
    return make_error(ErrorKind::kDamaged, "the header says that it belongs to checkpoint {}, not {}", owner,
                      id);
  }
  if (!all_zero(bytes.subspan(kReservedOffset, kMemoryHeaderBytes - 8 - kReservedOffset))) {
    return make_error(ErrorKind::kDamaged, "the header's reserved bytes are not zero");
  }
  return {};
}

std::vector<std::byte> encode_memory_trailer(const MemoryTrailer& trailer) {
  std::vector<std::byte> out;
  out.reserve(kMemoryTrailerBytes);
  append_bytes(out, as_byte_span(kTrailerMagic));
  append_le(out, kEndsVersion);
  append_le(out, trailer.index_offset);
  append_le(out, trailer.index_bytes);
  append_le(out, trailer.index_checksum);
  out.resize(kMemoryTrailerBytes - 8);
  append_le(out, checksum(out));
  return out;
}

Result<MemoryTrailer> decode_memory_trailer(std::span<const std::byte> bytes, u64 object_bytes) {
  VMSIEVE_TRY(check_envelope(bytes, kMemoryTrailerBytes, kTrailerMagic, "trailer"));
  if (!all_zero(bytes.subspan(kTrailerReservedOffset, kMemoryTrailerBytes - 8 - kTrailerReservedOffset))) {
    return make_error(ErrorKind::kDamaged, "the trailer's reserved bytes are not zero");
  }
  MemoryTrailer trailer;
  trailer.index_offset = load_le<u64>(bytes.data() + 16);
  trailer.index_bytes = load_le<u64>(bytes.data() + 24);
  trailer.index_checksum = load_le<u64>(bytes.data() + 32);
  if (trailer.index_offset < kMemoryHeaderBytes || trailer.index_offset % kPageSize != 0) {
    return make_error(ErrorKind::kDamaged,
                      "the trailer puts the index at {:#x}, not at a multiple of 4096 behind the header",
                      trailer.index_offset);
  }
  if (object_bytes < kMemoryTrailerBytes || trailer.index_offset > object_bytes - kMemoryTrailerBytes ||
      trailer.index_bytes != object_bytes - kMemoryTrailerBytes - trailer.index_offset) {
    return make_error(
        ErrorKind::kDamaged,
        "the trailer says {:#x} bytes of index at {:#x}, which does not fill the {:#x} bytes of the object",
        trailer.index_bytes, trailer.index_offset, object_bytes);
  }
  return trailer;
}

}  // namespace vmsieve
