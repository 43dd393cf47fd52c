// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/checkpoint_reader.h"

#include <thread>

#include "unit/store/store_fixture.h"
#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class CheckpointReaderTest : public StoreTest {
 protected:
  CheckpointReaderTest() { commit(); }

  std::unique_ptr<CheckpointReader> open(const std::string& id = kId) {
    auto reader = CheckpointReader::open(*store_, id);
    EXPECT_TRUE(reader.ok()) << reader.error().message();
    return reader.ok() ? std::move(*reader) : nullptr;
  }

  /// Every page of both blocks as the reader gives it.
  void expect_content(const CheckpointReader& reader) {
    CheckpointReader::Scratch scratch;
    for (u64 b = 0; b < reader.index().blocks.size(); ++b) {
      for (const PageRun& run : reader.index().blocks[b].runs) {
        for (u64 i = 0; i < run.pages; ++i) {
          std::vector<std::byte> page(kPageSize, static_cast<std::byte>(run.fill));
          if (run.kind == RunKind::kData) {
            const auto bytes = reader.read_frame(run.frame, scratch);
            ASSERT_TRUE(bytes.ok()) << bytes.error().message();
            const auto part = bytes->subspan((run.page_in_frame + i) * kPageSize, kPageSize);
            page.assign(part.begin(), part.end());
          }
          EXPECT_EQ(page, sample_content(b, run.first_page + i)) << b << " " << run.first_page + i;
        }
      }
    }
  }

  /// Rewrites the manifest of `id` with one thing changed, checksum and all.
  void change_manifest(const std::function<void(Manifest&)>& change, const std::string& id = kId) {
    auto manifest = decode_manifest(read_file(folder(id) / "manifest"));
    ASSERT_TRUE(manifest.ok());
    change(*manifest);
    write_file(folder(id) / "manifest", encode_manifest(*manifest));
  }

  /// Commits kOther, which takes a frame from kId.
  void commit_child() {
    const auto parent = open();
    Frame frame = parent->index().frames[2];
    const auto committed = commit_sample(*store_, {.id = kOther, .ancestor = kId, .ancestor_frame = frame});
    ASSERT_TRUE(committed.ok()) << committed.error().message();
  }
};

TEST_F(CheckpointReaderTest, GivesBackWhatWasSaved) {
  const auto reader = open();
  EXPECT_EQ(reader->manifest().vm_name, "web");
  EXPECT_EQ(reader->index().blocks, sample_blocks(false));
  expect_content(*reader);
  EXPECT_EQ(*reader->device_state(), bytes_of("QEVM the state of all devices"));
}

TEST_F(CheckpointReaderTest, UsesEveryCodec) {
  const auto reader = open();
  std::vector<Codec> codecs;
  for (const Frame& frame : reader->index().frames) codecs.push_back(frame.codec);
  EXPECT_EQ(codecs, (std::vector<Codec>{Codec::kNone, Codec::kLz4, Codec::kZstd, Codec::kNone}));
}

TEST_F(CheckpointReaderTest, UncompressedFramesStartAtAPage) {
  const auto reader = open();
  for (const Frame& frame : reader->index().frames) {
    if (frame.codec == Codec::kNone) {
      EXPECT_EQ(frame.offset % kPageSize, 0u);
    }
  }
  EXPECT_EQ(reader->index().frames[2].offset,
            reader->index().frames[1].offset + reader->index().frames[1].stored_bytes);
}

TEST_F(CheckpointReaderTest, GivesBackFramesOfAnAncestor) {
  commit_child();
  const auto reader = open(kOther);
  EXPECT_EQ(reader->manifest().ancestors, std::vector<std::string>{kId});
  expect_content(*reader);
  EXPECT_EQ(fault_of(*store_, kOther), "");
}

TEST_F(CheckpointReaderTest, NamesAFrameDamagedInAnAncestor) {
  commit_child();
  std::string memory = read_file(folder() / "memory");
  const u64 offset = open()->index().frames[2].offset;
  memory[offset + 3] = static_cast<char>(memory[offset + 3] ^ 1);
  write_file(folder() / "memory", memory);
  EXPECT_THAT(
      fault_of(*store_, kOther),
      AllOf(StartsWith("checkpoint 00000000000000a1, object memory, frame 3"), HasSubstr("checksum")));
}

TEST_F(CheckpointReaderTest, AnAncestorThatIsGoneIsDamage) {
  commit_child();
  fs::remove_all(folder());
  const auto reader = CheckpointReader::open(*store_, kOther);
  ASSERT_FALSE(reader.ok());
  EXPECT_EQ(reader.error().kind(), ErrorKind::kDamaged);
  EXPECT_THAT(reader.error().message(),
              HasSubstr("checkpoint 00000000000000b2 needs checkpoint 00000000000000a1"));
}

TEST_F(CheckpointReaderTest, AnAncestorsFrameMustLieInsideItsObject) {
  const auto parent = open();
  Frame frame = parent->index().frames[2];
  frame.offset = 1 * kMiB;
  ASSERT_TRUE(commit_sample(*store_, {.id = kOther, .ancestor = kId, .ancestor_frame = frame}).ok());
  EXPECT_THAT(fault_of(*store_, kOther), HasSubstr("goes beyond the index"));
}

TEST_F(CheckpointReaderTest, ManifestAndIndexMustNameTheSameAncestors) {
  commit_child();
  change_manifest([](Manifest& m) { m.ancestors.clear(); }, kOther);
  EXPECT_THAT(fault_of(*store_, kOther), HasSubstr("the same ancestors"));
}

TEST_F(CheckpointReaderTest, VerifyingAWholeCheckpointSucceedsAndTellsProgress) {
  u64 last = 0;
  u64 total = 0;
  const auto verified = open()->verify([&](u64 done, u64 all) {
    EXPECT_GE(done, last);
    last = done;
    total = all;
  });
  EXPECT_TRUE(verified.ok());
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, fs::file_size(folder() / "memory") + fs::file_size(folder() / "device"));
}

TEST_F(CheckpointReaderTest, ProgressOfAChildCountsTheFramesOfItsAncestor) {
  commit_child();
  u64 last = 0;
  u64 total = 0;
  ASSERT_TRUE(open(kOther)->verify([&](u64 done, u64 all) { last = done, total = all; }).ok());
  EXPECT_EQ(last, total);
  EXPECT_GT(total, fs::file_size(folder(kOther) / "memory") + fs::file_size(folder(kOther) / "device"));
}

TEST_F(CheckpointReaderTest, EveryFlippedBitIsFoundAndItsObjectNamed) {
  for (const char* name : {"memory", "device"}) {
    const std::string good = read_file(folder() / name);
    // A step that is prime to everything, so that every structure is hit; the device and both ends
    // completely.
    const std::size_t step = good.size() > 1000 ? 41 : 1;
    for (std::size_t at = 0; at < good.size(); at += at + 800 < good.size() ? step : 1) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ (1 << (at % 8)));
      write_file(folder() / name, bad);
      EXPECT_THAT(fault_of(*store_, kId), HasSubstr(fmt::format("checkpoint {}, object {}", kId, name)))
          << at;
    }
    write_file(folder() / name, good);
  }
  const std::string good = read_file(folder() / "manifest");
  for (std::size_t at = 0; at < good.size(); at += 3) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << (at % 8)));
    write_file(folder() / "manifest", bad);
    EXPECT_THAT(fault_of(*store_, kId), HasSubstr("manifest")) << at;
  }
  write_file(folder() / "manifest", good);
  EXPECT_EQ(fault_of(*store_, kId), "");
}

TEST_F(CheckpointReaderTest, TruncationAtEveryBoundaryIsFoundAndItsObjectNamed) {
  const auto reader = open();
  std::vector<u64> cuts = {0, 1, 4095, 4096, 4097};
  for (const Frame& frame : reader->index().frames) {
    for (const u64 at : {frame.offset, frame.offset + frame.stored_bytes}) {
      cuts.insert(cuts.end(), {at - 1, at, at + 1});
    }
  }
  const std::string good = read_file(folder() / "memory");
  const u64 trailer = good.size() - kMemoryTrailerBytes;
  cuts.insert(cuts.end(), {trailer - 1, trailer, trailer + 1, good.size() - 1});
  for (const u64 cut : cuts) {
    write_file(folder() / "memory", good.substr(0, cut));
    EXPECT_THAT(fault_of(*store_, kId),
                HasSubstr(fmt::format("checkpoint {}, object memory: it has {} bytes", kId, cut)));
  }
  write_file(folder() / "memory", good);
  const std::string device = read_file(folder() / "device");
  write_file(folder() / "device", device.substr(0, 5));
  EXPECT_THAT(fault_of(*store_, kId), HasSubstr("object device: it has 5 bytes"));
}

TEST_F(CheckpointReaderTest, TruncationThatTheManifestAgreesWithIsFoundToo) {
  const std::string good = read_file(folder() / "memory");
  for (const u64 size :
       {u64{0}, u64{63}, u64{4096}, u64{4159}, u64{4160}, good.size() - 64, good.size() - 1}) {
    write_file(folder() / "memory", good.substr(0, size));
    change_manifest([size](Manifest& m) {
      m.objects[0].bytes = size;
      m.stored_bytes = size + m.objects[1].bytes;
    });
    EXPECT_THAT(fault_of(*store_, kId), HasSubstr("object memory")) << size;
  }
}

TEST_F(CheckpointReaderTest, AByteInAGapIsFound) {
  const std::vector<Frame> frames = open()->index().frames;
  const u64 gap = frames[2].offset + frames[2].stored_bytes;
  ASSERT_LT(gap, frames[3].offset);
  std::string memory = read_file(folder() / "memory");
  memory[gap] = 1;
  write_file(folder() / "memory", memory);
  EXPECT_EQ(
      fault_of(*store_, kId),
      fmt::format("checkpoint {}, object memory, offset {:#x}: a byte between frames is 0x01, must be zero",
                  kId, gap));
}

TEST_F(CheckpointReaderTest, ADamagedFrameIsNamedWithItsOffset) {
  const auto reader = open();
  const u64 offset = reader->index().frames[1].offset;
  std::string memory = read_file(folder() / "memory");
  memory[offset] = static_cast<char>(memory[offset] ^ 1);
  write_file(folder() / "memory", memory);
  CheckpointReader::Scratch scratch;
  const auto frame = reader->read_frame(1, scratch);
  ASSERT_FALSE(frame.ok());
  EXPECT_EQ(frame.error().kind(), ErrorKind::kDamaged);
  EXPECT_THAT(frame.error().message(),
              StartsWith(fmt::format("checkpoint {}, object memory, frame 1 at offset {:#x}: its checksum is",
                                     kId, offset)));
}

TEST_F(CheckpointReaderTest, AFrameThatDoesNotExistIsAUsageError) {
  CheckpointReader::Scratch scratch;
  EXPECT_EQ(open()->read_frame(4, scratch).error().kind(), ErrorKind::kUsage);
}

TEST_F(CheckpointReaderTest, ADamagedDeviceStateIsNotGivenOut) {
  const auto reader = open();
  std::string device = read_file(folder() / "device");
  device[10] = 'X';
  write_file(folder() / "device", device);
  const auto state = reader->device_state();
  ASSERT_FALSE(state.ok());
  EXPECT_THAT(state.error().message(), HasSubstr("object device: its checksum"));
  EXPECT_THAT(reader->verify().error().message(), HasSubstr("object device: its checksum"));
}

TEST_F(CheckpointReaderTest, AMemoryObjectOfAnotherCheckpointIsDamage) {
  commit(kOther);
  fs::copy_file(folder(kOther) / "memory", folder() / "memory", fs::copy_options::overwrite_existing);
  EXPECT_THAT(fault_of(*store_, kId), HasSubstr("belongs to checkpoint 00000000000000b2"));
}

TEST_F(CheckpointReaderTest, AnIndexThatIsWholeButNotTheManifestsIsDamage) {
  change_manifest([](Manifest& m) { m.objects[0].checksum ^= 1; });
  EXPECT_THAT(fault_of(*store_, kId), HasSubstr("in the manifest"));
}

TEST_F(CheckpointReaderTest, ManifestAndIndexMustHaveTheSameBlocks) {
  change_manifest([](Manifest& m) { m.blocks[1].name = "other"; });
  EXPECT_THAT(fault_of(*store_, kId), HasSubstr("RAM block 1 is other of 0x2000 bytes in the manifest"));
  change_manifest([](Manifest& m) { m.blocks[1].name = "vga.vram", m.blocks[1].used_bytes = 5; });
  EXPECT_THAT(fault_of(*store_, kId), HasSubstr("RAM block 1"));
  change_manifest([](Manifest& m) { m.blocks.pop_back(); });
  EXPECT_THAT(fault_of(*store_, kId), HasSubstr("the manifest has 1 RAM blocks, the index 2"));
}

TEST_F(CheckpointReaderTest, ManifestAndIndexMustCountTheSamePages) {
  change_manifest([](Manifest& m) { ++m.pages.free, --m.pages.zero; });
  EXPECT_THAT(
      fault_of(*store_, kId),
      HasSubstr(
          "the manifest says 18 pages, 10 free, 1 zero, 1 fill, 6 saved; the index says 18 pages, 9 free"));
}

TEST_F(CheckpointReaderTest, ManifestsSumsMustAddUp) {
  change_manifest([](Manifest& m) { ++m.guest_bytes; });
  EXPECT_THAT(fault_of(*store_, kId), HasSubstr("bytes of guest memory"));
  change_manifest([](Manifest& m) { --m.guest_bytes, ++m.stored_bytes; });
  EXPECT_THAT(fault_of(*store_, kId), HasSubstr("stored bytes"));
}

TEST_F(CheckpointReaderTest, AMissingObjectIsAnError) {
  fs::remove(folder() / "device");
  EXPECT_THAT(fault_of(*store_, kId), HasSubstr("device"));
}

TEST_F(CheckpointReaderTest, ADeviceStateOfAbsurdSizeIsNotReadAtOnce) {
  fs::resize_file(folder() / "device", 1ull << 42);
  change_manifest([](Manifest& m) {
    m.objects[1].bytes = 1ull << 42;
    m.stored_bytes = m.objects[0].bytes + m.objects[1].bytes;
  });
  EXPECT_EQ(open()->device_state().error().kind(), ErrorKind::kUnsupported);
}

TEST_F(CheckpointReaderTest, ReadsFramesFromSeveralThreadsAtOnce) {
  const auto reader = open();
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) threads.emplace_back([&] { expect_content(*reader); });
}

TEST_F(CheckpointReaderTest, ARemovedCheckpointStaysReadableWhileItIsOpen) {
  const auto reader = open();
  ASSERT_TRUE(store_->remove(kId).ok());
  expect_content(*reader);
  EXPECT_TRUE(reader->verify().ok());
}

TEST_F(CheckpointReaderTest, AnUnknownCheckpointIsNotFound) {
  EXPECT_EQ(CheckpointReader::open(*store_, kOther).error().kind(), ErrorKind::kNotFound);
}

TEST_F(StoreTest, AFrameOfOtherLengthThanItsBytesIsRefused) {
  auto writer = store_->begin_as(kId);
  auto object = (*writer)->create("memory");
  MemoryObjectWriter memory{**object, kId};
  EXPECT_EQ(memory.add_frame(Frame{.stored_bytes = 3, .raw_bytes = kPageSize}, bytes_of("ab")).error().kind(),
            ErrorKind::kUsage);
}

TEST_F(StoreTest, AMemoryObjectWithAWrongIndexCannotBeFinished) {
  auto writer = store_->begin_as(kId);
  auto object = (*writer)->create("memory");
  MemoryObjectWriter memory{**object, kId};
  const auto finished = memory.finish({BlockIndex{.name = "b", .used_bytes = kPageSize, .runs = {}}});
  ASSERT_FALSE(finished.ok());
  EXPECT_EQ(finished.error().kind(), ErrorKind::kUsage);
  EXPECT_THAT(finished.error().message(), HasSubstr("cover 0 pages of 1"));
  EXPECT_FALSE(memory.finish({}).ok());
}

TEST_F(StoreTest, AMemoryObjectCannotBeItsOwnAncestor) {
  auto writer = store_->begin_as(kId);
  auto object = (*writer)->create("memory");
  MemoryObjectWriter memory{**object, kId};
  EXPECT_FALSE(memory.add_ancestor_frame(kId, {}).ok());
  EXPECT_FALSE(memory.add_ancestor_frame("../x", {}).ok());
}

TEST_F(StoreTest, AFinishedMemoryObjectTakesNothingMore) {
  auto writer = store_->begin_as(kId);
  auto object = (*writer)->create("memory");
  MemoryObjectWriter memory{**object, kId};
  ASSERT_TRUE(memory.finish({}).ok());
  EXPECT_FALSE(memory.add_frame(Frame{.stored_bytes = 1, .raw_bytes = kPageSize}, bytes_of("a")).ok());
  EXPECT_FALSE(memory.finish({}).ok());
}

}  // namespace
}  // namespace vmsieve
