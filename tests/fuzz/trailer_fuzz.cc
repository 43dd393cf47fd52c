// SPDX-License-Identifier: Apache-2.0
// Header and trailer of any bytes, with their checksum put right: a trailer that is taken lies inside the
// object.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "vmsieve/base/endian.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/memory_index.h"

namespace {

using namespace vmsieve;

/// `size` bytes: `data`, then zeros, then their checksum.
std::vector<std::byte> sealed(const std::uint8_t* data, std::size_t given, std::size_t size) {
  std::vector<std::byte> bytes(size - 8);
  std::memcpy(bytes.data(), data, std::min(given, bytes.size()));
  append_le(bytes, checksum(bytes));
  return bytes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::vector<std::byte> plain(size);
  for (std::size_t i = 0; i < size; ++i) plain[i] = std::byte{data[i]};
  (void)decode_memory_trailer(plain, size);
  (void)check_memory_header(plain, "0000000000000001");
  if (size < 8) return 0;
  const u64 object_bytes = load_le<u64>(plain.data());
  (void)check_memory_header(sealed(data + 8, size - 8, kMemoryHeaderBytes), "0000000000000001");
  const auto trailer = decode_memory_trailer(sealed(data + 8, size - 8, kMemoryTrailerBytes), object_bytes);
  if (trailer.ok()) {
    VMSIEVE_CHECK(trailer->index_offset >= kMemoryHeaderBytes && trailer->index_offset <= object_bytes);
    VMSIEVE_CHECK(trailer->index_bytes <= object_bytes - trailer->index_offset);
  }
  return 0;
}
