// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "vmsieve/capture/tracking.h"

namespace vmsieve {
namespace {

TrackingRecord example_record(pid_t qemu) {
  return {.qemu = qemu,
          .vm_name = "web \"1\"\n\xff",
          .store = "/stores/a b",
          .checkpoint = "0123456789abcdef",
          .why_none = "",
          .blocks = {{"pc.ram", kGiB, {0x7f0000000000, 0x7f0040000000}},
                     {"/rom@etc/acpi", 4097, {0x1000, 0x3000}}}};
}

TEST(TrackingRecord, IsReadAsItWasWritten) {
  for (const bool with_checkpoint : {true, false}) {
    TrackingRecord record = example_record(4711);
    if (!with_checkpoint) {
      record.checkpoint.clear();
      record.why_none = "the last save was not finished";
      record.blocks.clear();
    }
    const auto decoded = decode_tracking_record(encode_tracking_record(record));
    ASSERT_TRUE(decoded) << decoded.error().message();
    EXPECT_EQ(*decoded, record);
  }
}

TEST(TrackingRecord, CutOffAnywhereIsDamaged) {
  const std::string text = encode_tracking_record(example_record(4711));
  for (std::size_t bytes = 0; bytes < text.size(); ++bytes) {
    const auto decoded = decode_tracking_record(std::string_view(text).substr(0, bytes));
    ASSERT_FALSE(decoded) << bytes;
    EXPECT_EQ(decoded.error().kind(), ErrorKind::kDamaged) << decoded.error().message();
  }
}

TEST(TrackingRecord, WithAnyBitTurnedRoundIsDamaged) {
  const std::string text = encode_tracking_record(example_record(4711));
  for (std::size_t bit = 0; bit < text.size() * 8; ++bit) {
    std::string flipped = text;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    const auto decoded = decode_tracking_record(flipped);
    ASSERT_FALSE(decoded) << bit;
    EXPECT_EQ(decoded.error().kind(), ErrorKind::kDamaged) << decoded.error().message();
  }
}

TEST(TrackingRecord, WithBytesBehindItIsDamaged) {
  const std::string text = encode_tracking_record(example_record(4711));
  for (const char* const more : {"\n", " ", "}"}) EXPECT_FALSE(decode_tracking_record(text + more));
  EXPECT_FALSE(decode_tracking_record(text + '\0'));
  EXPECT_FALSE(decode_tracking_record("\n" + text));
}

TEST(TrackingRecord, ZerosAreDamaged) {
  EXPECT_FALSE(decode_tracking_record(std::string(500, '\0')));
  EXPECT_FALSE(decode_tracking_record("\n"));
}

}  // namespace
}  // namespace vmsieve
