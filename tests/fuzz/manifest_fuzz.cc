// SPDX-License-Identifier: Apache-2.0
// A manifest of any bytes is refused, or is the same after encoding and decoding. The bytes are tried as a
// whole manifest and as the JSON behind a header that fits.
#include <cstddef>
#include <cstdint>
#include <string>

#include "vmsieve/base/endian.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/manifest.h"

namespace {

void decode(const std::string& text) {
  using namespace vmsieve;
  const auto manifest = decode_manifest(text);
  if (!manifest.ok()) return;
  const std::string encoded = encode_manifest(*manifest);
  const auto again = decode_manifest(encoded);
  VMSIEVE_CHECK(again.ok() && encode_manifest(*again) == encoded);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmsieve;
  const std::string text(reinterpret_cast<const char*>(data), size);
  decode(text);
  decode(fmt::format("vmsieve-manifest 1 {} {:016x}\n{}", size, checksum(as_byte_span(text)), text));
  return 0;
}
