// SPDX-License-Identifier: Apache-2.0
#include "unit/store/chain_fixture.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

/// What checkpoint `owner` writes into a frame.
std::vector<std::byte> content_of(const std::string& owner, u64 frame, u64 pages, bool compressible) {
  std::vector<std::byte> bytes;
  const u64 first = std::stoull(owner, nullptr, 16) * 1000 + frame * pages;
  for (u64 page = first; page < first + pages; ++page) append_bytes(bytes, sample_page(page, compressible));
  return bytes;
}

}  // namespace

Result<Manifest> ChainTest::write_link(CheckpointWriter& writer, const std::string& parent,
                                       const std::set<u64>& fresh) {
  std::unique_ptr<CheckpointReader> before;
  if (!parent.empty()) {
    VMSIEVE_ASSIGN(before, CheckpointReader::open(*store_, parent));
  }
  VMSIEVE_ASSIGN(auto object, writer.create("memory"));
  MemoryObjectWriter memory{*object, writer.id()};
  BlockIndex ram{.name = "pc.ram", .used_bytes = kFrames * kFramePages * kPageSize, .runs = {}};
  std::vector<std::string> owners;
  for (u64 i = 0; i < kFrames; ++i) {
    ram.runs.push_back(
        {.first_page = i * kFramePages, .pages = kFramePages, .kind = RunKind::kData, .frame = i});
    if (!before || fresh.contains(i)) {
      FrameEncoder encoder{{Codec::kLz4, 1}};
      std::vector<std::byte> encoded;
      const Frame frame = encoder.encode(content_of(writer.id(), i, kFramePages, compressible(i)), encoded);
      VMSIEVE_TRY(memory.add_frame(frame, encoded));
      owners.push_back(writer.id());
    } else {
      const Frame& frame = before->index().frames[i];
      const auto& ancestors = before->index().ancestors;
      VMSIEVE_TRY(memory.add_ancestor_frame(frame.object == 0 ? parent : ancestors[frame.object - 1], frame));
      owners.push_back(owners_[parent][i]);
    }
  }
  owners_[writer.id()] = owners;
  VMSIEVE_ASSIGN(ObjectRecord record, memory.finish({ram}));
  VMSIEVE_ASSIGN(auto device, writer.create("device"));
  VMSIEVE_TRY(device->append(as_byte_span("QEVM")));
  VMSIEVE_TRY(device->finish());

  Manifest manifest;
  manifest.id = writer.id();
  manifest.created = "2026-01-31T12:34:56.789Z";
  manifest.mode = "paused";
  manifest.vm_name = "chain";
  manifest.compression = "lz4";
  manifest.parent = parent;
  manifest.ancestors = memory.ancestors();
  manifest.blocks = {{.name = ram.name, .used_bytes = ram.used_bytes, .max_bytes = ram.used_bytes}};
  manifest.mappings = {{.address = 0, .bytes = ram.used_bytes, .block = 0, .block_offset = 0}};
  manifest.guest_bytes = ram.used_bytes;
  manifest.pages = {.total = kFrames * kFramePages, .saved = kFrames * kFramePages};
  manifest.stored_bytes = record.bytes + 4;
  manifest.objects = {std::move(record),
                      {.name = "device", .bytes = 4, .checksum = checksum(as_byte_span("QEVM"))}};
  return manifest;
}

void ChainTest::commit_link(const std::string& id, const std::string& parent, const std::set<u64>& fresh) {
  auto writer = store_->begin_as(id);
  ASSERT_TRUE(writer.ok()) << writer.error().message();
  const auto manifest = write_link(**writer, parent, fresh);
  ASSERT_TRUE(manifest.ok()) << manifest.error().message();
  const auto committed = (*writer)->commit(*manifest);
  ASSERT_TRUE(committed.ok()) << committed.error().message();
}

void ChainTest::commit_family() {
  commit_link(kA, "", {});
  commit_link(kB, kA, {0, 1, 2, 3, 4, 5});
  commit_link(kC, kB, {4, 5, 6, 7, 8});
  commit_link(kD, kB, {0, 1, 8, 9, 10, 11});
}

void ChainTest::expect_whole(const std::string& id) {
  const auto reader = CheckpointReader::open(*store_, id);
  ASSERT_TRUE(reader.ok()) << reader.error().message();
  const auto verified = (*reader)->verify();
  EXPECT_TRUE(verified.ok()) << verified.error().message();
  CheckpointReader::Scratch scratch;
  for (u64 i = 0; i < kFrames; ++i) {
    const auto bytes = (*reader)->read_frame(i, scratch);
    ASSERT_TRUE(bytes.ok()) << bytes.error().message();
    const auto expected = content_of(owners_[id][i], i, kFramePages, compressible(i));
    EXPECT_TRUE(std::equal(bytes->begin(), bytes->end(), expected.begin(), expected.end())) << id << " " << i;
  }
}

std::vector<std::string> ChainTest::listed() const {
  const auto listing = store_->list();
  std::vector<std::string> ids;
  EXPECT_TRUE(listing.ok());
  for (const Manifest& manifest : listing->checkpoints) ids.push_back(manifest.id);
  return ids;
}

u64 ChainTest::stored(const std::string& id) const {
  struct stat info {};
  EXPECT_EQ(::stat((folder(id) / "memory").c_str(), &info), 0);
  return static_cast<u64>(info.st_blocks) * 512;
}

std::vector<std::string> ChainTest::remove(const std::string& id) {
  auto removal = store_->remove(id);
  EXPECT_TRUE(removal.ok()) << removal.error().message();
  return removal.ok() ? removal->needed_by : std::vector<std::string>{};
}

u64 ChainTest::sweep() {
  const auto swept = store_->sweep();
  EXPECT_TRUE(swept.ok()) << swept.error().message();
  return swept.ok() ? *swept : ~u64{0};
}

bool ChainTest::can_punch() const {
  const fs::path probe = root_ / "probe";
  write_file(probe, std::string(8192, 'x'));
  const int fd = ::open(probe.c_str(), O_WRONLY | O_CLOEXEC);
  const bool can = ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0;
  ::close(fd);
  fs::remove(probe);
  return can;
}

}  // namespace vmsieve
