// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/migration_stream.h"

#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Bytes = std::vector<std::byte>;

Bytes bytes_of(std::initializer_list<unsigned> values) {
  Bytes bytes;
  for (const unsigned value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

/// Header, one FULL section of the device "d" (id 5), EOF.
Bytes device_state(bool footer = true) {
  Bytes bytes;
  append_be(bytes, u32{0x5145564d});
  append_be(bytes, u32{3});
  append_bytes(bytes, bytes_of({0x04, 0, 0, 0, 5, 1, 'd', 0, 0, 0, 0, 0, 0, 0, 1, 0xab}));
  if (footer) append_bytes(bytes, bytes_of({0x7e, 0, 0, 0, 5}));
  bytes.push_back(std::byte{0});
  return bytes;
}

Bytes page_of(unsigned value) { return Bytes(kPageSize, static_cast<std::byte>(value)); }

/// A writer whose stream is kept.
struct Recorder {
  explicit Recorder(std::vector<StreamBlock> blocks, StreamFormat format = {})
      : writer(
            [this](std::span<const std::byte> chunk) -> Result<void> {
              append_bytes(stream, chunk);
              largest = std::max<u64>(largest, chunk.size());
              return {};
            },
            "pc-x", std::move(blocks), format) {}
  Bytes stream;
  u64 largest = 0;
  MigrationStreamWriter writer;
};

/// Reads a stream as QEMU does: an independent, minimal parser.
class Reader {
 public:
  explicit Reader(const Bytes& stream) : bytes_(stream) {}

  template <typename T>
  T take() {
    EXPECT_LE(at_ + sizeof(T), bytes_.size());
    if (at_ + sizeof(T) > bytes_.size()) return 0;
    at_ += sizeof(T);
    return load_be<T>(bytes_.data() + at_ - sizeof(T));
  }
  std::string take_text(std::size_t size) {
    std::string text;
    for (std::size_t i = 0; i < size; ++i) text += static_cast<char>(take<u8>());
    return text;
  }
  void expect_footer(u32 id) {
    EXPECT_EQ(take<u8>(), 0x7e);
    EXPECT_EQ(take<u32>(), id);
  }

  struct Page {
    std::string block;
    u64 offset = 0;
    u64 flag = 0;
    u8 first_byte = 0;
    bool operator==(const Page&) const = default;
  };
  struct Ram {
    u32 id = 0;
    std::vector<std::pair<std::string, u64>> blocks;
    std::vector<Page> pages;
  };

  std::string read_start() {
    EXPECT_EQ(take<u32>(), 0x5145564dU);
    EXPECT_EQ(take<u32>(), 3U);
    EXPECT_EQ(take<u8>(), 0x07);
    std::string machine = take_text(take<u32>());
    // Where pages may have several lengths (arm), a reader that is not told takes another one.
    EXPECT_EQ(take<u8>(), 0x05);
    EXPECT_EQ(take_text(take<u8>()), "configuration/target-page-bits");
    EXPECT_EQ(take<u32>(), 1U);
    EXPECT_EQ(take<u32>(), 12U);
    return machine;
  }

  Ram read_ram(bool footers = true) {
    Ram ram;
    EXPECT_EQ(take<u8>(), 0x01);
    ram.id = take<u32>();
    EXPECT_EQ(take_text(take<u8>()), "ram");
    EXPECT_EQ(take<u32>(), 0U);
    EXPECT_EQ(take<u32>(), 4U);
    u64 left = take<u64>();
    EXPECT_EQ(left & 0xfff, 0x04U);
    for (left &= ~u64{0xfff}; left > 0 && !::testing::Test::HasFailure();) {
      std::string name = take_text(take<u8>());
      const u64 length = take<u64>();
      EXPECT_LE(length, left);
      left -= length;
      ram.blocks.emplace_back(std::move(name), length);
    }
    EXPECT_EQ(take<u64>(), 0x10U);
    if (footers) expect_footer(ram.id);
    EXPECT_EQ(take<u8>(), 0x03);
    EXPECT_EQ(take<u32>(), ram.id);
    read_pages(ram);
    if (footers) expect_footer(ram.id);
    return ram;
  }

  Bytes rest() const { return {bytes_.begin() + static_cast<std::ptrdiff_t>(at_), bytes_.end()}; }

 private:
  void read_pages(Ram& ram) {
    std::string block;
    while (!::testing::Test::HasFailure()) {
      const u64 header = take<u64>();
      if (header == 0x10) return;
      if ((header & 0x20) == 0) block = take_text(take<u8>());
      Page page{block, header & ~u64{0xfff}, header & 0xfff & ~u64{0x20}, take<u8>()};
      if (page.flag == 0x08) at_ += kPageSize - 1;
      ram.pages.push_back(std::move(page));
    }
  }

  const Bytes& bytes_;
  std::size_t at_ = 0;
};

constexpr u64 kZero = 0x02;
constexpr u64 kData = 0x08;

TEST(MigrationStream, BeginsWithMachineTypeAndBlockList) {
  Recorder r{{{"pc.ram", 16 * kPageSize}, {"vga.vram", kPageSize}}};
  ASSERT_TRUE(r.writer.begin().ok());
  ASSERT_TRUE(r.writer.finish(device_state()).ok());
  Reader reader{r.stream};
  EXPECT_EQ(reader.read_start(), "pc-x");
  const auto ram = reader.read_ram();
  EXPECT_THAT(ram.blocks, ElementsAre(std::pair{"pc.ram", 16 * kPageSize}, std::pair{"vga.vram", kPageSize}));
  EXPECT_THAT(ram.pages, IsEmpty());
}

TEST(MigrationStream, EndsWithDeviceSectionsAndDescription) {
  Recorder r{{{"a", kPageSize}}};
  ASSERT_TRUE(r.writer.begin().ok());
  const Bytes state = device_state();
  ASSERT_TRUE(r.writer.finish(state).ok());
  Reader reader{r.stream};
  reader.read_start();
  reader.read_ram();
  Bytes rest = reader.rest();
  const std::size_t sections = state.size() - 8;  // with the end mark
  ASSERT_GT(rest.size(), sections + 5);
  EXPECT_TRUE(std::equal(state.begin() + 8, state.end(), rest.begin()));
  EXPECT_EQ(rest[sections], std::byte{0x06});
  EXPECT_EQ(load_be<u32>(rest.data() + sections + 1), rest.size() - sections - 5);
  EXPECT_EQ(rest[sections + 5], std::byte{'{'});
  EXPECT_EQ(rest.back(), std::byte{'}'});
}

TEST(MigrationStream, PagesOfOneBlockContinue) {
  Recorder r{{{"a", 4 * kPageSize}, {"b", 4 * kPageSize}}};
  ASSERT_TRUE(r.writer.begin().ok());
  Bytes two = page_of(1);
  append_bytes(two, page_of(2));
  ASSERT_TRUE(r.writer.pages(0, 1, two).ok());
  ASSERT_TRUE(r.writer.pages(1, 3, page_of(3)).ok());
  ASSERT_TRUE(r.writer.pages(0, 0, page_of(4)).ok());
  ASSERT_TRUE(r.writer.finish(device_state()).ok());
  Reader reader{r.stream};
  reader.read_start();
  EXPECT_THAT(reader.read_ram().pages,
              ElementsAre(Reader::Page{"a", kPageSize, kData, 1}, Reader::Page{"a", 2 * kPageSize, kData, 2},
                          Reader::Page{"b", 3 * kPageSize, kData, 3}, Reader::Page{"a", 0, kData, 4}));
}

TEST(MigrationStream, ZeroFillUsesTheZeroFlag) {
  Recorder r{{{"a", 4 * kPageSize}}};
  ASSERT_TRUE(r.writer.begin().ok());
  ASSERT_TRUE(r.writer.fill_pages(0, 2, 2, 0).ok());
  ASSERT_TRUE(r.writer.finish(device_state()).ok());
  Reader reader{r.stream};
  reader.read_start();
  EXPECT_THAT(reader.read_ram().pages, ElementsAre(Reader::Page{"a", 2 * kPageSize, kZero, 0},
                                                   Reader::Page{"a", 3 * kPageSize, kZero, 0}));
}

TEST(MigrationStream, OtherFillTravelsAsData) {
  Recorder r{{{"a", 4 * kPageSize}}};
  ASSERT_TRUE(r.writer.begin().ok());
  ASSERT_TRUE(r.writer.fill_pages(0, 0, 1, 0xaa).ok());
  ASSERT_TRUE(r.writer.finish(device_state()).ok());
  Reader reader{r.stream};
  reader.read_start();
  EXPECT_THAT(reader.read_ram().pages, ElementsAre(Reader::Page{"a", 0, kData, 0xaa}));
}

TEST(MigrationStream, RamSectionHasNoNumberThatADeviceCanHave) {
  Recorder r{{{"a", kPageSize}}};
  ASSERT_TRUE(r.writer.begin().ok());
  ASSERT_TRUE(r.writer.finish(device_state()).ok());
  Reader reader{r.stream};
  reader.read_start();
  const u32 id = reader.read_ram().id;
  EXPECT_GT(id, 0x10000U);
  EXPECT_LT(id, 0x80000000U) << "QEMU keeps it in an int";
}

TEST(MigrationStream, OldMachineTypesWantNoFooters) {
  Recorder r{{{"a", kPageSize}}, {.configuration = true, .section_footers = false}};
  ASSERT_TRUE(r.writer.begin().ok());
  ASSERT_TRUE(r.writer.finish(device_state(false)).ok());
  Reader reader{r.stream};
  reader.read_start();
  reader.read_ram(false);
}

TEST(MigrationStream, OldMachineTypesWantNoConfiguration) {
  Recorder r{{{"a", kPageSize}}, {.configuration = false, .section_footers = true}};
  ASSERT_TRUE(r.writer.begin().ok());
  ASSERT_TRUE(r.writer.finish(device_state()).ok());
  Reader reader{r.stream};
  reader.take<u64>();
  reader.read_ram();
}

// Pages have fixed places, and what follows them in the stream does too.
TEST(MigrationStream, MappedRamLeavesRoomForEveryBlock) {
  std::map<u64, Bytes> chunks;  // by their place
  u64 position = 0;
  MigrationStreamWriter writer{[&](std::span<const std::byte> chunk) -> Result<void> {
                                 chunks[position] = Bytes(chunk.begin(), chunk.end());
                                 position += chunk.size();
                                 return {};
                               },
                               "pc-x",
                               {{"pc.ram", 100 * kPageSize}, {"rom", 2 * kPageSize}}};
  writer.map_ram([&](u64 offset) -> Result<void> {
    position = offset;
    return {};
  });
  ASSERT_TRUE(writer.begin());
  ASSERT_TRUE(writer.finish(device_state()));
  ASSERT_EQ(writer.mapped().size(), 2U);
  u64 end = 0;
  for (std::size_t i = 0; i < 2; ++i) {
    const MappedBlock& mapped = writer.mapped()[i];
    const u64 pages = i == 0 ? 100 : 2;
    EXPECT_EQ(mapped.pages_offset % kMiB, 0U);
    EXPECT_GE(mapped.pages_offset, mapped.bitmap_offset + (pages + 63) / 64 * 8);
    // The header ends where the bitmap begins.
    ASSERT_TRUE(chunks.contains(end));
    const Bytes& chunk = chunks[end];
    ASSERT_EQ(end + chunk.size(), mapped.bitmap_offset);
    const std::byte* header = chunk.data() + chunk.size() - 28;
    EXPECT_EQ(load_be<u32>(header), 1U);
    EXPECT_EQ(load_be<u64>(header + 4), kPageSize);
    EXPECT_EQ(load_be<u64>(header + 12), mapped.bitmap_offset);
    EXPECT_EQ(load_be<u64>(header + 20), mapped.pages_offset);
    end = mapped.pages_offset + pages * kPageSize;
  }
  // The rest stands behind the last page, in one piece.
  ASSERT_EQ(chunks.size(), 3U);
  EXPECT_EQ(chunks.rbegin()->first, end);
  const std::string first(reinterpret_cast<const char*>(chunks[0].data()), chunks[0].size());
  EXPECT_THAT(first, HasSubstr("configuration/capabilities"));
  EXPECT_THAT(first, HasSubstr("mapped-ram"));
}

TEST(MigrationStream, BytesGoOutInBoundedPortions) {
  Recorder r{{{"a", 1024 * kPageSize}}};
  ASSERT_TRUE(r.writer.begin().ok());
  for (u64 page = 0; page < 1024; page += 256) {
    ASSERT_TRUE(r.writer.pages(0, page, Bytes(256 * kPageSize, std::byte{7})).ok());
  }
  EXPECT_GT(r.stream.size(), 3 * kMiB);
  EXPECT_LE(r.largest, kMiB + 2 * kPageSize);
}

TEST(MigrationStream, PagesOutsideTheBlockAreRefused) {
  Recorder r{{{"a", 2 * kPageSize}}};
  ASSERT_TRUE(r.writer.begin().ok());
  EXPECT_EQ(r.writer.pages(0, 2, page_of(1)).error().kind(), ErrorKind::kDamaged);
  EXPECT_EQ(r.writer.fill_pages(0, 1, 2, 0).error().kind(), ErrorKind::kDamaged);
  EXPECT_EQ(r.writer.fill_pages(0, ~u64{0}, 2, 0).error().kind(), ErrorKind::kDamaged);
  EXPECT_EQ(r.writer.fill_pages(0, 1, ~u64{0}, 0).error().kind(), ErrorKind::kDamaged);
}

TEST(MigrationStream, BlocksThatCannotBeSaidAreRefused) {
  for (const std::vector<StreamBlock>& blocks : std::vector<std::vector<StreamBlock>>{
           {{"", kPageSize}},
           {{std::string(256, 'x'), kPageSize}},
           {{"a", kPageSize + 1}},
           {{"a", ~u64{0} - kPageSize + 1}, {"b", ~u64{0} - kPageSize + 1}}}) {
    Recorder r{blocks};
    const auto begun = r.writer.begin();
    ASSERT_FALSE(begun.ok());
    EXPECT_EQ(begun.error().kind(), ErrorKind::kUnsupported);
  }
}

TEST(MigrationStream, SinkErrorComesBack) {
  MigrationStreamWriter writer{
      [](std::span<const std::byte>) -> Result<void> { return make_error(ErrorKind::kIo, "no room"); },
      "m",
      {{"a", 1024 * kPageSize}}};
  ASSERT_TRUE(writer.begin().ok());
  EXPECT_EQ(writer.fill_pages(0, 0, 1024, 1).error().message(), "no room");
  EXPECT_EQ(writer.finish(device_state()).error().message(), "no room");
}

TEST(MigrationStream, BrokenDeviceStateIsNotSent) {
  Recorder r{{{"a", kPageSize}}};
  ASSERT_TRUE(r.writer.begin().ok());
  EXPECT_EQ(r.writer.finish(bytes_of({1, 2, 3})).error().kind(), ErrorKind::kDamaged);
  EXPECT_THAT(r.stream, IsEmpty());
}

TEST(DeviceSections, AreWithoutHeaderAndEndMark) {
  const Bytes state = device_state();
  const auto sections = device_sections(state);
  ASSERT_TRUE(sections.ok());
  EXPECT_EQ(sections->data(), state.data() + 8);
  EXPECT_EQ(sections->size(), state.size() - 9);
}

TEST(DeviceSections, MayBeNone) {
  const Bytes state = bytes_of({'Q', 'E', 'V', 'M', 0, 0, 0, 3, 0});
  EXPECT_THAT(*device_sections(state), IsEmpty());
}

TEST(DeviceSections, WrongMagicIsDamaged) {
  Bytes state = device_state();
  state[0] = std::byte{'q'};
  EXPECT_EQ(device_sections(state).error().kind(), ErrorKind::kDamaged);
}

TEST(DeviceSections, AnotherVersionIsUnsupported) {
  Bytes state = device_state();
  state[7] = std::byte{2};
  EXPECT_EQ(device_sections(state).error().kind(), ErrorKind::kUnsupported);
}

TEST(DeviceSections, CutShortIsDamaged) {
  Bytes state = device_state();
  state.pop_back();
  EXPECT_EQ(device_sections(state).error().kind(), ErrorKind::kDamaged);
  EXPECT_EQ(device_sections(std::span{state}.first(8)).error().kind(), ErrorKind::kDamaged);
  EXPECT_EQ(device_sections({}).error().kind(), ErrorKind::kDamaged);
}

TEST(DeviceSections, AnotherKindOfSectionIsDamaged) {
  Bytes state = device_state();
  state[8] = std::byte{0x07};
  EXPECT_THAT(device_sections(state).error().message(), HasSubstr("0x07"));
}

TEST(DeviceSections, FootersAreSeen) {
  const Bytes with = device_state(true);
  const Bytes without = device_state(false);
  EXPECT_TRUE(has_section_footers(*device_sections(with)));
  EXPECT_FALSE(has_section_footers(*device_sections(without)));
  EXPECT_FALSE(has_section_footers({}));
}

}  // namespace
}  // namespace vmsieve
