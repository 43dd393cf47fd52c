// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/checkpoint_memory.h"

#include "unit/store/store_fixture.h"

namespace vmsieve {
namespace {

using ::testing::HasSubstr;

class CheckpointMemoryTest : public StoreTest {
 protected:
  CheckpointMemoryTest() { commit(); }

  /// Main memory at `mappings`; the sample has all of block 0 at address 0.
  void open(const std::vector<MappingRecord>& mappings = {}) {
    auto manifest = decode_manifest(read_file(folder(kId) / "manifest"));
    ASSERT_TRUE(manifest.ok());
    if (!mappings.empty()) manifest->mappings = mappings;
    manifest->blocks[0].guest_ram = true;
    write_file(folder(kId) / "manifest", encode_manifest(*manifest));
    auto reader = CheckpointReader::open(*store_, kId);
    ASSERT_TRUE(reader.ok()) << reader.error().message();
    reader_ = std::move(*reader);
    memory_ = std::make_unique<CheckpointMemory>(*reader_);
  }

  std::vector<std::byte> read(u64 address, u64 bytes) const {
    std::vector<std::byte> out(bytes);
    const auto done = memory_->read(GuestPhysical{address}, out);
    EXPECT_TRUE(done.ok()) << done.error().message();
    return out;
  }

  ErrorKind failure(u64 address, u64 bytes) const {
    std::vector<std::byte> out(bytes);
    const auto done = memory_->read(GuestPhysical{address}, out);
    EXPECT_FALSE(done.ok());
    return done.ok() ? ErrorKind::kUsage : done.error().kind();
  }

  static std::vector<std::byte> whole() {
    std::vector<std::byte> all;
    for (u64 page = 0; page < 16; ++page) {
      const auto content = sample_content(0, page);
      all.insert(all.end(), content.begin(), content.end());
    }
    return all;
  }

  std::unique_ptr<CheckpointReader> reader_;
  std::unique_ptr<CheckpointMemory> memory_;
};

TEST_F(CheckpointMemoryTest, EveryByteReadsAsItWas) {
  open();
  ASSERT_EQ(memory_->ram().size(), 1u);
  EXPECT_EQ(memory_->ram()[0], (PfnRange{Pfn{0}, 16}));
  const std::vector<std::byte> all = whole();
  EXPECT_EQ(read(0, all.size()), all);
  // Across pages and frames, twice: the second time from what was kept.
  for (int turn = 0; turn < 2; ++turn) {
    for (const auto& [at, bytes] :
         {std::pair<u64, u64>{5 * kPageSize - 3, 9}, {11 * kPageSize + 7, 2 * kPageSize}, {4095, 1}}) {
      const auto expected = std::span{all}.subspan(at, bytes);
      EXPECT_EQ(read(at, bytes), std::vector(expected.begin(), expected.end())) << at;
    }
  }
}

TEST_F(CheckpointMemoryTest, WhatIsNoRamIsAnError) {
  open();
  EXPECT_EQ(failure(16 * kPageSize, 1), ErrorKind::kDamaged);
  EXPECT_EQ(failure(16 * kPageSize - 4, 8), ErrorKind::kDamaged);
  EXPECT_EQ(failure(~u64{0}, 1), ErrorKind::kDamaged);
}

TEST_F(CheckpointMemoryTest, AddressesAreThoseOfTheMappings) {
  // The block in two pieces, the second one far away, and one that no page can be told of.
  open({{.address = 0, .bytes = 6 * kPageSize, .block = 0, .block_offset = 0},
        {.address = kGiB, .bytes = 10 * kPageSize, .block = 0, .block_offset = 6 * kPageSize}});
  ASSERT_EQ(memory_->ram().size(), 2u);
  EXPECT_EQ(read(kGiB, kPageSize), sample_content(0, 6));
  EXPECT_EQ(failure(6 * kPageSize, 1), ErrorKind::kDamaged);
  const u64 far = kGiB >> kPageShift;
  EXPECT_THAT(memory_->free_pages(), ::testing::ElementsAre(PfnRange{Pfn{1}, 4}, PfnRange{Pfn{far + 6}, 4}));
}

TEST_F(CheckpointMemoryTest, DamageIsFoundWhenItsFrameIsRead) {
  open();
  std::string object = read_file(folder(kId) / "memory");
  const Frame frame = reader_->index().frames[1];
  object[frame.offset + frame.stored_bytes / 2] ^= 1;
  write_file(folder(kId) / "memory", object);
  open();
  EXPECT_EQ(failure(5 * kPageSize, 1), ErrorKind::kDamaged);
  EXPECT_EQ(read(0, kPageSize), sample_content(0, 0));
}

}  // namespace
}  // namespace vmsieve
