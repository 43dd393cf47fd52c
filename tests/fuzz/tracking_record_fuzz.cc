// SPDX-License-Identifier: Apache-2.0
// The record of what is tracked, as it comes and with its checksum put right: what is taken is written again
// as it was understood.
#include <cstddef>
#include <cstdint>

#include "vmsieve/capture/tracking.h"
#include "vmsieve/image/frame_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmsieve;
  std::string body;
  for (std::size_t i = 0; i < size; ++i) body += static_cast<char>(data[i]);
  (void)decode_tracking_record(body);
  const std::string sealed = fmt::format("{:016x}\n{}", checksum(std::as_bytes(std::span{body})), body);
  const auto record = decode_tracking_record(sealed);
  if (record.ok()) {
    const auto again = decode_tracking_record(encode_tracking_record(*record));
    VMSIEVE_CHECK(again.ok() && *again == *record);
  }
  return 0;
}
