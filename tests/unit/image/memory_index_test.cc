// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/image/memory_index.h"

#include <chrono>
#include <functional>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

Frame own_frame(u64 offset, u64 stored, u64 pages, Codec codec = Codec::kZstd) {
  return {.object = 0,
          .codec = codec,
          .offset = offset,
          .stored_bytes = stored,
          .raw_bytes = pages * kPageSize,
          .checksum = 0x1122334455667788};
}

MemoryIndex example() {
  MemoryIndex index;
  index.ancestors = {"00000000000000aa", "00000000000000bb"};
  index.frames = {own_frame(4096, 100, 4), own_frame(4196, 200, 256),
                  own_frame(2 * 4096, 2 * 4096, 2, Codec::kNone)};
  Frame foreign = own_frame(0x100001, 77, 1, Codec::kLz4);
  foreign.object = 2;
  index.frames.push_back(foreign);
  BlockIndex ram{.name = "pc.ram", .used_bytes = 300 * kPageSize, .runs = {}};
  ram.runs = {
      {.first_page = 0, .pages = 30, .kind = RunKind::kFree, .fill = 0xaa},
      {.first_page = 30, .pages = 200, .kind = RunKind::kData, .frame = 1, .page_in_frame = 56},
      {.first_page = 230, .pages = 4, .kind = RunKind::kData, .frame = 0, .page_in_frame = 0},
      {.first_page = 234, .pages = 64, .kind = RunKind::kFill, .fill = 0},
      {.first_page = 298, .pages = 1, .kind = RunKind::kData, .frame = 3, .page_in_frame = 0},
      {.first_page = 299, .pages = 1, .kind = RunKind::kFill, .fill = 0xff},
  };
  BlockIndex odd{.name = "odd", .used_bytes = kPageSize + 1, .runs = {}};
  odd.runs = {{.first_page = 0, .pages = 2, .kind = RunKind::kData, .frame = 2, .page_in_frame = 0}};
  index.blocks = {ram, odd, BlockIndex{.name = "empty", .used_bytes = 0, .runs = {}}};
  return index;
}

std::string fault_of(const MemoryIndex& index) {
  const auto result = validate(index);
  if (result.ok()) return "";
  EXPECT_EQ(result.error().kind(), ErrorKind::kDamaged);
  return result.error().message();
}

std::string fault_after(const std::function<void(MemoryIndex&)>& change) {
  MemoryIndex index = example();
  change(index);
  return fault_of(index);
}

TEST(MemoryIndex, DecodingGivesWhatWasEncoded) {
  const auto decoded = decode_index(encode_index(example()));
  ASSERT_TRUE(decoded.ok()) << decoded.error().message();
  EXPECT_EQ(*decoded, example());
}

TEST(MemoryIndex, AnEmptyIndexIsSixtyFourBytes) {
  const auto bytes = encode_index(MemoryIndex{});
  EXPECT_EQ(bytes.size(), 64u);
  const auto decoded = decode_index(bytes);
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(*decoded, MemoryIndex{});
}

TEST(MemoryIndex, CodecsHaveNames) {
  EXPECT_EQ(to_string(Codec::kNone), "none");
  EXPECT_EQ(to_string(Codec::kLz4), "lz4");
  EXPECT_EQ(to_string(Codec::kZstd), "zstd");
  EXPECT_EQ(to_string(static_cast<Codec>(9)), "unknown");
}

TEST(MemoryIndex, EveryTruncationIsDamage) {
  const auto bytes = encode_index(example());
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const auto decoded = decode_index(std::span{bytes}.first(size));
    ASSERT_FALSE(decoded.ok()) << size;
    EXPECT_EQ(decoded.error().kind(), ErrorKind::kDamaged) << size;
  }
}

TEST(MemoryIndex, EveryTruncationWithAFittingLengthIsDamage) {
  const auto bytes = encode_index(example());
  for (std::size_t size = 64; size < bytes.size(); ++size) {
    std::vector<std::byte> cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    for (unsigned i = 0; i < 8; ++i) cut[16 + i] = static_cast<std::byte>(u64{size} >> (8 * i));
    EXPECT_FALSE(decode_index(cut).ok()) << size;
  }
}

TEST(MemoryIndex, BytesBehindTheLastBlockAreDamage) {
  auto bytes = encode_index(example());
  bytes.push_back(std::byte{0});
  bytes[16] = static_cast<std::byte>(static_cast<unsigned>(bytes[16]) + 1);
  const auto decoded = decode_index(bytes);
  ASSERT_FALSE(decoded.ok());
  EXPECT_THAT(decoded.error().message(), HasSubstr("bytes follow the last block"));
}

TEST(MemoryIndex, NoBitFlipMakesTheDecoderMisbehave) {
  const auto bytes = encode_index(example());
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      auto flipped = bytes;
      flipped[at] ^= static_cast<std::byte>(1u << bit);
      const auto decoded = decode_index(flipped);
      if (decoded.ok()) {
        EXPECT_TRUE(validate(*decoded).ok());
      }
    }
  }
}

TEST(MemoryIndex, AnUnknownVersionIsUnsupported) {
  auto bytes = encode_index(example());
  bytes[8] = std::byte{7};
  const auto decoded = decode_index(bytes);
  ASSERT_FALSE(decoded.ok());
  EXPECT_EQ(decoded.error().kind(), ErrorKind::kUnsupported);
  EXPECT_THAT(decoded.error().message(), HasSubstr("version 7"));
}

TEST(MemoryIndex, AnUnknownRequiredFeatureIsNamedByItsBit) {
  auto bytes = encode_index(example());
  bytes[24 + 4] = std::byte{0x10};
  const auto decoded = decode_index(bytes);
  ASSERT_FALSE(decoded.ok());
  EXPECT_EQ(decoded.error().kind(), ErrorKind::kUnsupported);
  EXPECT_THAT(decoded.error().message(), HasSubstr("feature bit 36"));
}

TEST(MemoryIndex, CountsBeyondTheBytesThereAreRefusedBeforeMemoryIsAllocated) {
  for (const std::size_t field : {32u, 40u, 48u, 56u}) {
    auto bytes = encode_index(example());
    for (unsigned i = 0; i < 7; ++i) bytes[field + i] = std::byte{0xff};
    const auto decoded = decode_index(bytes);
    ASSERT_FALSE(decoded.ok());
    EXPECT_THAT(decoded.error().message(), HasSubstr("do not fit")) << field;
  }
}

TEST(MemoryIndex, ABlockMayNotHaveMoreOrFewerRunsThanTheHeaderCounts) {
  auto fewer = encode_index(example());
  fewer[56] = std::byte{6};
  EXPECT_THAT(decode_index(fewer).error().message(), HasSubstr("more runs than the index holds"));
  auto more = encode_index(example());
  more[56] = std::byte{8};
  EXPECT_THAT(decode_index(more).error().message(), HasSubstr("fewer runs than the header says"));
}

TEST(MemoryIndex, ValidExamplesPass) { EXPECT_EQ(fault_of(example()), ""); }

TEST(MemoryIndex, AncestorsMustBeDifferentCheckpointIds) {
  EXPECT_THAT(fault_after([](MemoryIndex& i) { i.ancestors[1] = "../../etc/passwd"; }),
              HasSubstr("no checkpoint id"));
  EXPECT_THAT(fault_after([](MemoryIndex& i) { i.ancestors[1] = i.ancestors[0]; }), HasSubstr("named twice"));
}

TEST(MemoryIndex, AFrameMustKeepItsBounds) {
  const auto fault = [](const std::function<void(Frame&)>& change, std::size_t frame = 0) {
    return fault_after([&](MemoryIndex& index) { change(index.frames[frame]); });
  };
  EXPECT_THAT(fault([](Frame& f) { f.object = 3; }), HasSubstr("not among the ancestors"));
  EXPECT_THAT(fault([](Frame& f) { f.codec = static_cast<Codec>(3); }), HasSubstr("codec is unknown"));
  EXPECT_THAT(fault([](Frame& f) { f.raw_bytes = 0; }), HasSubstr("not 1 to 256 pages"));
  EXPECT_THAT(fault([](Frame& f) { f.raw_bytes = 4097; }), HasSubstr("not 1 to 256 pages"));
  EXPECT_THAT(fault([](Frame& f) { f.raw_bytes = kMaxFrameBytes + kPageSize; }),
              HasSubstr("not 1 to 256 pages"));
  EXPECT_THAT(fault([](Frame& f) { f.stored_bytes = 0; }), HasSubstr("stored size"));
  EXPECT_THAT(fault([](Frame& f) { f.stored_bytes = f.raw_bytes + 1; }), HasSubstr("stored size"));
  EXPECT_THAT(fault([](Frame& f) { f.stored_bytes = 4096; }, 2), HasSubstr("two sizes differ"));
  EXPECT_THAT(fault([](Frame& f) { f.offset += 512; }, 2), HasSubstr("multiple of 4096"));
  EXPECT_THAT(fault([](Frame& f) { f.offset = 4095; }), HasSubstr("overlaps the header"));
  EXPECT_THAT(fault([](Frame& f) { f.offset = ~u64{0} - 10; }, 3), HasSubstr("beyond 64 bits"));
}

TEST(MemoryIndex, OwnFramesMustAscendWithoutOverlap) {
  EXPECT_THAT(fault_after([](MemoryIndex& i) { i.frames[1].offset = 4195; }), HasSubstr("overlaps"));
  EXPECT_THAT(fault_after([](MemoryIndex& i) { std::swap(i.frames[0], i.frames[1]); }),
              HasSubstr("overlaps"));
}

TEST(MemoryIndex, FramesOfAncestorsMayStandInAnyOrder) {
  MemoryIndex index = example();
  index.frames.insert(index.frames.end(), 2, index.frames[3]);
  EXPECT_EQ(fault_of(index), "");
}

TEST(MemoryIndex, BlockNamesMustBeUniqueAndOneTo255Bytes) {
  EXPECT_THAT(fault_after([](MemoryIndex& i) { i.blocks[1].name = ""; }), HasSubstr("its name has 0 bytes"));
  EXPECT_THAT(fault_after([](MemoryIndex& i) { i.blocks[1].name.assign(256, 'x'); }), HasSubstr("256 bytes"));
  EXPECT_THAT(fault_after([](MemoryIndex& i) { i.blocks[1].name = "pc.ram"; }), HasSubstr("there twice"));
  EXPECT_EQ(fault_after([](MemoryIndex& i) { i.blocks[1].name.assign(255, 'x'); }), "");
}

TEST(MemoryIndex, NamesAreMadePrintableInErrors) {
  EXPECT_THAT(fault_after([](MemoryIndex& i) { i.blocks[0].name = i.blocks[1].name = "\x1b[2J\xff\\"; }),
              HasSubstr("\\x1b[2J\\xff\\x5c"));
}

TEST(MemoryIndex, BlocksMayNotExceedTheGuestPhysicalSpace) {
  EXPECT_THAT(fault_after([](MemoryIndex& i) { i.blocks[2].used_bytes = ~u64{0}; }), HasSubstr("exceed"));
  EXPECT_THAT(fault_after([](MemoryIndex& i) { i.blocks[2].used_bytes = kMaxGuestBytes - 4096; }),
              HasSubstr("exceed"));
}

TEST(MemoryIndex, RunsMustCoverEachBlockExactly) {
  const auto fault = [](const std::function<void(std::vector<PageRun>&)>& change) {
    return fault_after([&](MemoryIndex& index) { change(index.blocks[0].runs); });
  };
  EXPECT_THAT(fault([](auto& runs) { runs.pop_back(); }), HasSubstr("cover 299 pages of 300"));
  EXPECT_THAT(fault([](auto& runs) { runs.clear(); }), HasSubstr("cover 0 pages of 300"));
  EXPECT_THAT(fault([](auto& runs) { runs.back().pages = 2; }), HasSubstr("beyond the end of the block"));
  EXPECT_THAT(fault([](auto& runs) { runs.back().pages = ~u64{0}; }),
              HasSubstr("beyond the end of the block"));
  EXPECT_THAT(fault([](auto& runs) { runs[1].first_page = 31; }), HasSubstr("where the run before ended"));
  EXPECT_THAT(fault([](auto& runs) { runs[0].first_page = 1; }), HasSubstr("where the run before ended"));
  EXPECT_THAT(fault([](auto& runs) { runs[0].pages = 0; }), HasSubstr("no pages"));
}

TEST(MemoryIndex, ARunMustFitItsKind) {
  const auto fault = [](const std::function<void(std::vector<PageRun>&)>& change) {
    return fault_after([&](MemoryIndex& index) { change(index.blocks[0].runs); });
  };
  EXPECT_THAT(fault([](auto& runs) { runs[0].kind = static_cast<RunKind>(0); }),
              HasSubstr("kind is unknown"));
  EXPECT_THAT(fault([](auto& runs) { runs[0].kind = static_cast<RunKind>(4); }),
              HasSubstr("kind is unknown"));
  EXPECT_THAT(fault([](auto& runs) { runs[0].frame = 1; }), HasSubstr("kind is not data"));
  EXPECT_THAT(fault([](auto& runs) { runs[3].page_in_frame = 1; }), HasSubstr("kind is not data"));
  EXPECT_THAT(fault([](auto& runs) { runs[1].fill = 1; }), HasSubstr("kind is data"));
}

TEST(MemoryIndex, ADataRunMustLieInsideItsFrame) {
  const auto fault = [](const std::function<void(PageRun&)>& change) {
    return fault_after([&](MemoryIndex& index) { change(index.blocks[0].runs[1]); });
  };
  EXPECT_THAT(fault([](PageRun& run) { run.frame = 4; }), HasSubstr("frame does not exist"));
  EXPECT_THAT(fault([](PageRun& run) { run.page_in_frame = 57; }), HasSubstr("beyond the decoded pages"));
  EXPECT_THAT(fault([](PageRun& run) { run.page_in_frame = 256; }), HasSubstr("beyond the decoded pages"));
  EXPECT_THAT(fault([](PageRun& run) { run.page_in_frame = ~u64{0}; }),
              HasSubstr("beyond the decoded pages"));
}

/// Bytes of an index with one block of `pages` pages whose only run is `run`.
std::vector<std::byte> index_with_run(std::initializer_list<unsigned> run, u64 pages = 1) {
  MemoryIndex index;
  index.frames = {own_frame(4096, 100, 1)};
  index.blocks = {BlockIndex{.name = "b", .used_bytes = pages * kPageSize, .runs = {}}};
  auto bytes = encode_index(index);
  for (const unsigned byte : run) bytes.push_back(static_cast<std::byte>(byte));
  bytes[56] = std::byte{1};                             // runs in all
  bytes[bytes.size() - run.size() - 8] = std::byte{1};  // runs of the block
  bytes[16] = static_cast<std::byte>(bytes.size());
  return bytes;
}

TEST(MemoryIndex, MalformedRunsAreDamageAtAnOffset) {
  EXPECT_TRUE(decode_index(index_with_run({3, 1, 0, 0})).ok());
  const auto fault = [](std::initializer_list<unsigned> run) {
    const auto decoded = decode_index(index_with_run(run));
    return decoded.ok() ? "" : decoded.error().message();
  };
  EXPECT_EQ(fault({0, 1, 0}), "index, offset 0x81: the kind of a run is unknown");
  EXPECT_EQ(fault({4, 1, 0}), "index, offset 0x81: the kind of a run is unknown");
  EXPECT_EQ(fault({1, 0x81, 0x80}), "index, offset 0x81: the page count of a run is malformed");
  EXPECT_EQ(fault({1, 0x81, 0x00, 0x00}), "index, offset 0x81: the page count of a run is malformed");
  EXPECT_EQ(fault({1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0}),
            "index, offset 0x81: the page count of a run is malformed");
  EXPECT_EQ(fault({3, 1, 0x80, 0x80}), "index, offset 0x81: the frame of a run is malformed");
  EXPECT_EQ(fault({3, 1, 0x01, 0x80}), "index, offset 0x81: the frame of a run is malformed");
  EXPECT_EQ(fault({2, 0x81, 0x01}), "index, offset 0x81: a run is cut off");
  // A step back from frame 0.
  EXPECT_THAT(fault({3, 1, 1, 0}), HasSubstr("frame does not exist"));
}

TEST(MemoryIndex, ReservedBytesOfAFrameMustBeZero) {
  auto bytes = index_with_run({3, 1, 0, 0});
  bytes[64 + 6] = std::byte{1};
  EXPECT_THAT(decode_index(bytes).error().message(), HasSubstr("reserved bytes of a frame"));
}

TEST(MemoryIndex, TheLengthOfABlocksNameIsBounded) {
  auto bytes = index_with_run({3, 1, 0, 0});
  const std::size_t name_bytes = 64 + 40;
  bytes[name_bytes] = std::byte{0};
  EXPECT_THAT(decode_index(bytes).error().message(), HasSubstr("not 1 to 255"));
  bytes[name_bytes + 7] = std::byte{0xff};
  EXPECT_THAT(decode_index(bytes).error().message(), HasSubstr("not 1 to 255"));
}

/// Free and data pages by turns: what a guest at its worst looks like.
MemoryIndex fragmented(u64 runs) {
  MemoryIndex index;
  const u64 data_pages = runs / 2;
  for (u64 i = 0; i < (data_pages + 255) / 256; ++i)
    index.frames.push_back(own_frame(4096 + 5000 * i, 5000, 256));
  BlockIndex block{.name = "pc.ram", .used_bytes = 2 * data_pages * kPageSize, .runs = {}};
  for (u64 i = 0; i < data_pages; ++i) {
    block.runs.push_back({.first_page = 2 * i, .pages = 1, .kind = RunKind::kFree});
    block.runs.push_back({.first_page = 2 * i + 1,
                          .pages = 1,
                          .kind = RunKind::kData,
                          .frame = i / 256,
                          .page_in_frame = i % 256});
  }
  index.blocks.push_back(std::move(block));
  return index;
}

TEST(MemoryIndex, AFragmentedGuestTakesFourBytesPerPage) {
  const MemoryIndex index = fragmented(1000000);
  const auto start = Clock::now();
  const auto bytes = encode_index(index);
  const auto middle = Clock::now();
  const auto decoded = decode_index(bytes);
  const auto end = Clock::now();
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(*decoded, index);
  EXPECT_LE(bytes.size(), 4u * 1000000);
  const auto ms = [](auto from, auto to) {
    return std::chrono::duration<double, std::milli>(to - from).count();
  };
  RecordProperty("encode_ms", std::to_string(ms(start, middle)));
  RecordProperty("decode_ms", std::to_string(ms(middle, end)));
  RecordProperty("bytes", std::to_string(bytes.size()));
}

constexpr std::string_view kId = "0123456789abcdef";

TEST(MemoryHeader, IsOnePageAndPassesItsCheck) {
  const auto bytes = encode_memory_header(kId);
  EXPECT_EQ(bytes.size(), kMemoryHeaderBytes);
  EXPECT_TRUE(check_memory_header(bytes, kId).ok());
}

TEST(MemoryHeader, EveryBitFlipIsFound) {
  const auto bytes = encode_memory_header(kId);
  std::mt19937 random{1};
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    auto flipped = bytes;
    flipped[at] ^= static_cast<std::byte>(1u << (random() % 8));
    EXPECT_FALSE(check_memory_header(flipped, kId).ok()) << at;
  }
}

TEST(MemoryHeader, OfAnotherCheckpointIsDamage) {
  const auto result = check_memory_header(encode_memory_header("ffffffffffffffff"), kId);
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.error().message(),
              HasSubstr("belongs to checkpoint ffffffffffffffff, not 0123456789abcdef"));
}

TEST(MemoryHeader, OfAnotherSizeIsDamage) {
  const auto bytes = encode_memory_header(kId);
  EXPECT_FALSE(check_memory_header(std::span{bytes}.first(4095), kId).ok());
  EXPECT_FALSE(check_memory_header({}, kId).ok());
}

TEST(MemoryTrailer, DecodingGivesWhatWasEncoded) {
  const MemoryTrailer trailer{.index_offset = 8192, .index_bytes = 100, .index_checksum = 42};
  const auto bytes = encode_memory_trailer(trailer);
  EXPECT_EQ(bytes.size(), kMemoryTrailerBytes);
  const auto decoded = decode_memory_trailer(bytes, 8192 + 100 + 64);
  ASSERT_TRUE(decoded.ok()) << decoded.error().message();
  EXPECT_EQ(decoded->index_offset, 8192u);
  EXPECT_EQ(decoded->index_bytes, 100u);
  EXPECT_EQ(decoded->index_checksum, 42u);
}

TEST(MemoryTrailer, EveryBitFlipIsFound) {
  const auto bytes = encode_memory_trailer({.index_offset = 8192, .index_bytes = 100, .index_checksum = 42});
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    auto flipped = bytes;
    flipped[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    EXPECT_FALSE(decode_memory_trailer(flipped, 8192 + 100 + 64).ok()) << bit;
  }
}

TEST(MemoryTrailer, MustFillTheObject) {
  const auto decode = [](u64 offset, u64 bytes, u64 object) {
    return decode_memory_trailer(
               encode_memory_trailer({.index_offset = offset, .index_bytes = bytes, .index_checksum = 0}),
               object)
        .ok();
  };
  EXPECT_TRUE(decode(4096, 10, 4096 + 10 + 64));
  EXPECT_FALSE(decode(4096, 10, 4096 + 10 + 65));
  EXPECT_FALSE(decode(4096, 10, 4096 + 10 + 63));
  EXPECT_FALSE(decode(0, 4096 + 10, 4096 + 10 + 64));
  EXPECT_FALSE(decode(4104, 2, 4104 + 2 + 64));
  EXPECT_FALSE(decode(8192, ~u64{0} - 8192, 63));
  EXPECT_FALSE(decode(8192, ~u64{0} - 8191, 64));
  EXPECT_FALSE(decode(~u64{0} - 4095, 4096 + 64, 0));
}

}  // namespace
}  // namespace vmsieve
