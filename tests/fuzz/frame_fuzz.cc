// SPDX-License-Identifier: Apache-2.0
// Stored bytes of any kind decode to exactly the size that the frame has, or are refused; what an encoder
// makes decodes to what it was given.
#include <cstddef>
#include <cstdint>

#include "vmsieve/image/frame_codec.h"

namespace {

using namespace vmsieve;

void decode_anything(Codec codec, u64 pages, const std::vector<std::byte>& stored) {
  const Frame frame{.codec = codec,
                    .stored_bytes = stored.size(),
                    .raw_bytes = pages * kPageSize,
                    .checksum = checksum(stored)};
  std::vector<std::byte> decoded;
  if (decode_frame(frame, stored, decoded).ok()) VMSIEVE_CHECK(decoded.size() == frame.raw_bytes);
}

void encode_and_decode(Codec codec, std::vector<std::byte> raw) {
  raw.resize(round_up(raw.size() + 1, kPageSize));
  if (raw.size() > kMaxFrameBytes) return;
  // Making an encoder costs a thousand times what it encodes here.
  static FrameEncoder encoders[] = {FrameEncoder{{Codec::kNone, 1}}, FrameEncoder{{Codec::kLz4, 1}},
                                    FrameEncoder{{Codec::kZstd, 1}}};
  std::vector<std::byte> stored;
  std::vector<std::byte> decoded;
  const Frame frame = encoders[static_cast<u8>(codec)].encode(raw, stored);
  VMSIEVE_CHECK(decode_frame(frame, stored, decoded).ok() && decoded == raw);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const auto codec = static_cast<Codec>(data[0] % 4);
  std::vector<std::byte> bytes(size - 2);
  for (std::size_t i = 2; i < size; ++i) bytes[i - 2] = std::byte{data[i]};
  decode_anything(codec, data[1] % 8, bytes);
  if (codec <= Codec::kZstd) encode_and_decode(codec, bytes);
  return 0;
}
