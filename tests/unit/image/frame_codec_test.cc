// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/image/frame_codec.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <lz4.h>
#include <zstd.h>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

using ::testing::HasSubstr;

std::vector<std::byte> random_bytes(std::size_t size, unsigned seed = 1) {
  std::mt19937_64 random{seed};
  std::vector<std::byte> bytes(size);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

std::vector<std::byte> text_bytes(std::size_t size) {
  constexpr std::string_view kText = "a page of text compresses rather well; ";
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i)
    bytes[i] = static_cast<std::byte>(kText[i % kText.size()] + i / 4096 % 7);
  return bytes;
}

class EveryCodec : public ::testing::TestWithParam<Codec> {};
INSTANTIATE_TEST_SUITE_P(FrameCodec, EveryCodec, ::testing::Values(Codec::kNone, Codec::kLz4, Codec::kZstd),
                         [](const auto& parameter) { return std::string{to_string(parameter.param)}; });

TEST_P(EveryCodec, DecodingGivesWhatWasEncoded) {
  FrameEncoder encoder{{GetParam(), 1}};
  std::vector<std::byte> stored;
  std::vector<std::byte> decoded;
  for (const u64 pages : {1, 2, 7, 256}) {
    for (const auto& raw : {text_bytes(pages * kPageSize), random_bytes(pages * kPageSize)}) {
      const Frame frame = encoder.encode(raw, stored);
      EXPECT_EQ(frame.raw_bytes, raw.size());
      EXPECT_EQ(frame.stored_bytes, stored.size());
      EXPECT_EQ(frame.checksum, checksum(stored));
      const auto result = decode_frame(frame, stored, decoded);
      ASSERT_TRUE(result.ok()) << result.error().message();
      EXPECT_EQ(decoded, raw);
    }
  }
}

TEST_P(EveryCodec, WhatCompressesIsStoredWithTheCodec) {
  FrameEncoder encoder{{GetParam(), 1}};
  std::vector<std::byte> stored;
  const Frame frame = encoder.encode(text_bytes(16 * kPageSize), stored);
  EXPECT_EQ(frame.codec, GetParam());
  if (GetParam() != Codec::kNone) {
    EXPECT_LT(frame.stored_bytes, 8 * kPageSize);
  }
}

TEST_P(EveryCodec, WhatDoesNotCompressIsStoredAsItIs) {
  FrameEncoder encoder{{GetParam(), 1}};
  std::vector<std::byte> stored;
  auto raw = random_bytes(32 * kPageSize);
  // One page of 32 saves less than 1/16.
  std::fill_n(raw.begin(), kPageSize, std::byte{0});
  const Frame frame = encoder.encode(raw, stored);
  EXPECT_EQ(frame.codec, Codec::kNone);
  EXPECT_EQ(stored, raw);
}

TEST_P(EveryCodec, WhatIsStoredAsItIsNeedNotBeCopied) {
  FrameEncoder encoder{{GetParam(), 1}};
  std::vector<std::byte> stored(3);
  const auto raw = random_bytes(32 * kPageSize);
  const Frame frame = encoder.encode_or_keep(raw, stored);
  EXPECT_EQ(frame.codec, Codec::kNone);
  EXPECT_TRUE(stored.empty());
  EXPECT_EQ(frame.stored_bytes, raw.size());
  EXPECT_EQ(frame.checksum, checksum(raw));
}

TEST_P(EveryCodec, FramesOfWhichAPartCompressesAreCompressed) {
  if (GetParam() == Codec::kNone) GTEST_SKIP() << "nothing is compressed";
  FrameEncoder encoder{{GetParam(), 1}};
  std::vector<std::byte> stored;
  // A quarter of it, wherever it lies.
  for (std::size_t first = 0; first < 64; first += 16) {
    auto raw = random_bytes(64 * kPageSize);
    const auto text = text_bytes(16 * kPageSize);
    std::copy(text.begin(), text.end(), raw.begin() + static_cast<std::ptrdiff_t>(first * kPageSize));
    const Frame frame = encoder.encode(raw, stored);
    EXPECT_EQ(frame.codec, GetParam()) << first;
    EXPECT_LT(frame.stored_bytes, 52 * kPageSize);
  }
}

TEST_P(EveryCodec, AFlippedBitIsFoundByTheChecksum) {
  FrameEncoder encoder{{GetParam(), 1}};
  std::vector<std::byte> stored;
  std::vector<std::byte> decoded;
  const Frame frame = encoder.encode(text_bytes(kPageSize), stored);
  for (std::size_t i = 0; i < stored.size(); i += 7) {
    stored[i] ^= std::byte{4};
    const auto result = decode_frame(frame, stored, decoded);
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().kind(), ErrorKind::kDamaged);
    EXPECT_THAT(result.error().message(), HasSubstr("checksum"));
    stored[i] ^= std::byte{4};
  }
}

TEST_P(EveryCodec, GarbageWithAFittingChecksumIsDamage) {
  if (GetParam() == Codec::kNone) GTEST_SKIP() << "anything decodes";
  std::vector<std::byte> decoded;
  for (unsigned seed = 0; seed < 200; ++seed) {
    const auto stored = random_bytes(1 + seed * 3, seed);
    const Frame frame{.codec = GetParam(),
                      .stored_bytes = stored.size(),
                      .raw_bytes = 256 * kPageSize,
                      .checksum = checksum(stored)};
    const auto result = decode_frame(frame, stored, decoded);
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().kind(), ErrorKind::kDamaged);
  }
}

TEST_P(EveryCodec, AnotherDecodedSizeIsDamage) {
  FrameEncoder encoder{{GetParam(), 1}};
  std::vector<std::byte> stored;
  std::vector<std::byte> decoded;
  Frame frame = encoder.encode(text_bytes(4 * kPageSize), stored);
  frame.raw_bytes = 5 * kPageSize;
  EXPECT_FALSE(decode_frame(frame, stored, decoded).ok());
  frame.raw_bytes = 3 * kPageSize;
  EXPECT_FALSE(decode_frame(frame, stored, decoded).ok());
}

TEST(FrameCodec, SizesOutOfBoundsAreDamage) {
  std::vector<std::byte> decoded;
  const auto stored = text_bytes(kPageSize);
  const auto decode = [&](u64 stored_bytes, u64 raw_bytes) {
    const Frame frame{.stored_bytes = stored_bytes, .raw_bytes = raw_bytes, .checksum = checksum(stored)};
    return decode_frame(frame, stored, decoded).ok();
  };
  EXPECT_TRUE(decode(kPageSize, kPageSize));
  EXPECT_FALSE(decode(kPageSize - 1, kPageSize));
  EXPECT_FALSE(decode(kPageSize, 0));
  EXPECT_FALSE(decode(kPageSize, kPageSize + 1));
  EXPECT_FALSE(decode(kPageSize, kMaxFrameBytes + kPageSize));
  EXPECT_FALSE(decode_frame(Frame{.stored_bytes = 0, .raw_bytes = kPageSize}, {}, decoded).ok());
}

TEST(FrameCodec, AnUnknownCodecIsDamage) {
  std::vector<std::byte> decoded;
  const auto stored = text_bytes(kPageSize);
  const Frame frame{.codec = static_cast<Codec>(3),
                    .stored_bytes = kPageSize,
                    .raw_bytes = kPageSize,
                    .checksum = checksum(stored)};
  EXPECT_THAT(decode_frame(frame, stored, decoded).error().message(), HasSubstr("codec 3 is unknown"));
}

TEST(FrameCodec, TwoZstandardFramesInARowAreDamage) {
  const auto raw = text_bytes(kPageSize);
  std::vector<std::byte> stored(2 * ZSTD_compressBound(raw.size()));
  const std::size_t first = ZSTD_compress(stored.data(), stored.size(), raw.data(), raw.size() / 2, 1);
  const std::size_t second =
      ZSTD_compress(stored.data() + first, stored.size() - first, raw.data(), raw.size() / 2, 1);
  stored.resize(first + second);
  const Frame frame{.codec = Codec::kZstd,
                    .stored_bytes = stored.size(),
                    .raw_bytes = kPageSize,
                    .checksum = checksum(stored)};
  std::vector<std::byte> decoded;
  EXPECT_THAT(decode_frame(frame, stored, decoded).error().message(), HasSubstr("not one Zstandard frame"));
}

TEST(FrameCodec, DecodesFromSeveralThreadsAtOnce) {
  FrameEncoder encoder{{Codec::kZstd, 3}};
  std::vector<std::byte> stored;
  const auto raw = text_bytes(64 * kPageSize);
  const Frame frame = encoder.encode(raw, stored);
  std::atomic<int> good{0};
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        std::vector<std::byte> decoded;
        for (int i = 0; i < 20; ++i)
          good += decode_frame(frame, stored, decoded).ok() && decoded == raw ? 1 : 0;
      });
    }
  }
  EXPECT_EQ(good, 80);
}

TEST(FrameCodec, AnEncoderCanBeMoved) {
  FrameEncoder first{{Codec::kLz4, 1}};
  FrameEncoder second{std::move(first)};
  std::vector<std::byte> stored;
  EXPECT_EQ(second.encode(text_bytes(kPageSize), stored).codec, Codec::kLz4);
}

TEST(FrameCodecDeathTest, EncodingAPartOfAPageIsABrokenInvariant) {
  FrameEncoder encoder{{Codec::kNone, 1}};
  std::vector<std::byte> stored;
  const auto raw = text_bytes(100);
  EXPECT_DEATH(encoder.encode(raw, stored), "broken invariant");
}

TEST(Compression, IsParsedAndPrinted) {
  for (const char* text : {"none", "lz4", "zstd:1", "zstd:7", "zstd:19"}) {
    const auto compression = Compression::parse(text);
    ASSERT_TRUE(compression.ok()) << text;
    EXPECT_EQ(compression->text(), text);
  }
  EXPECT_EQ(Compression::parse("zstd")->text(), "zstd:1");
}

TEST(Compression, OtherTextsAreUsageErrors) {
  for (const char* text : {"", "gzip", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:3x", "zstd: 3", "lz4:1",
                           "NONE", "zstd:99999999999999999999"}) {
    const auto compression = Compression::parse(text);
    ASSERT_FALSE(compression.ok()) << text;
    EXPECT_EQ(compression.error().kind(), ErrorKind::kUsage);
  }
}

TEST(Checksum, IsXxh3WithSeedZero) {
  // Published value of XXH3_64bits over no bytes.
  EXPECT_EQ(checksum({}), 0x2d06800538d394c2u);
}

TEST(Checksum, InPiecesIsTheSame) {
  const auto bytes = random_bytes(100000);
  StreamingChecksum sum;
  for (std::size_t at = 0, size = 1; at < bytes.size(); at += size, size = size * 3 % 5000 + 1) {
    sum.update(std::span{bytes}.subspan(at, std::min(size, bytes.size() - at)));
  }
  EXPECT_EQ(sum.value(), checksum(bytes));
}

TEST(UniformByte, IsTheByteOfAUniformPage) {
  for (unsigned value = 0; value < 256; ++value) {
    const std::vector<std::byte> page(kPageSize, static_cast<std::byte>(value));
    EXPECT_EQ(uniform_byte(page), static_cast<u8>(value));
  }
}

TEST(UniformByte, SeesEveryByteThatDiffers) {
  std::vector<std::byte> page(kPageSize, std::byte{0x5a});
  for (std::size_t i = 0; i < kPageSize; ++i) {
    page[i] ^= std::byte{0x10};
    EXPECT_EQ(uniform_byte(page), std::nullopt) << i;
    page[i] ^= std::byte{0x10};
  }
}

TEST(UniformByte, WorksAtAnyAlignment) {
  std::vector<std::byte> bytes(kPageSize + 16, std::byte{7});
  for (std::size_t shift = 0; shift < 16; ++shift) {
    EXPECT_EQ(uniform_byte(std::span{bytes}.subspan(shift, kPageSize)), u8{7});
  }
}

}  // namespace
}  // namespace vmsieve
