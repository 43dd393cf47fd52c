// SPDX-License-Identifier: Apache-2.0
// A working set, as it comes and with its checksum put right: what is taken names frames that there are, none
// twice, and is written again as it was understood.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/working_set.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmsieve;
  constexpr u64 kFrames = 1000;
  std::string lines;
  for (std::size_t i = 0; i < size; ++i) lines += static_cast<char>(data[i]);
  (void)decode_working_set(lines, kFrames);
  const auto set = decode_working_set(
      fmt::format("vmsieve-working-set 1\n{:016x}\n{}", checksum(std::as_bytes(std::span{lines})), lines),
      kFrames);
  if (!set.ok()) return 0;
  VMSIEVE_CHECK(set->size() <= kFrames);
  VMSIEVE_CHECK(std::ranges::all_of(*set, [](u64 frame) { return frame < kFrames; }));
  const auto again = decode_working_set(encode_working_set(*set), kFrames);
  VMSIEVE_CHECK(again.ok() && *again == *set);
  return 0;
}
