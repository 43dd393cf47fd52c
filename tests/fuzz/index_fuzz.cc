// SPDX-License-Identifier: Apache-2.0
// An index of any bytes is refused, or is valid and encodes to bytes that decode to the same.
#include <cstddef>
#include <cstdint>

#include "vmsieve/base/result.h"
#include "vmsieve/image/memory_index.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmsieve;
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = std::byte{data[i]};
  // The length is checked first: put it right, so that the fuzzer gets past it.
  for (std::size_t i = 0; size >= 64 && i < 8; ++i)
    bytes[16 + i] = static_cast<std::byte>(std::uint64_t{size} >> (8 * i));
  const auto index = decode_index(bytes);
  if (!index.ok()) return 0;
  VMSIEVE_CHECK(validate(*index).ok());
  const auto again = decode_index(encode_index(*index));
  VMSIEVE_CHECK(again.ok() && *again == *index);
  return 0;
}
