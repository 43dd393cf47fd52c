// SPDX-License-Identifier: Apache-2.0
#include "unit/store/store_fixture.h"

#include <sys/mount.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

/// Adds one frame of these pages of block 0 (or 1) to the object.
Result<u64> add_pages(MemoryObjectWriter& memory, Codec codec, u64 first, u64 count, bool compressible) {
  std::vector<std::byte> raw;
  for (u64 page = first; page < first + count; ++page) append_bytes(raw, sample_page(page, compressible));
  FrameEncoder encoder{{codec, 1}};
  std::vector<std::byte> stored;
  const Frame frame = encoder.encode(raw, stored);
  return memory.add_frame(frame, stored);
}

}  // namespace

TemporaryDirectory::TemporaryDirectory() {
  std::string pattern = (fs::temp_directory_path() / "vmsieve-test-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) std::abort();
  path_ = pattern;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

TemporaryMount::TemporaryMount(const fs::path& path, const std::string& options, const char* type)
    : path_(path) {
  mounted_ = ::geteuid() == 0 && ::mount("vmsieve-test", path.c_str(), type, 0, options.c_str()) == 0;
}

TemporaryMount::~TemporaryMount() {
  if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
}

bool TemporaryMount::set_read_only(bool read_only) {
  return ::mount("vmsieve-test", path_.c_str(), "tmpfs", MS_REMOUNT | (read_only ? MS_RDONLY : 0), nullptr) ==
         0;
}

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const fs::path& path, std::string_view content) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  EXPECT_TRUE(file) << path;
}

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto span = as_byte_span(text);
  return {span.begin(), span.end()};
}

std::vector<std::byte> sample_page(u64 page, bool compressible) {
  std::vector<std::byte> bytes(kPageSize);
  u64 state = page * 0x9e3779b97f4a7c15 + 1;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    state = state * 6364136223846793005 + 1442695040888963407;
    bytes[i] = compressible ? static_cast<std::byte>('a' + (i / 64 + page) % 26)
                            : static_cast<std::byte>(state >> 56);
  }
  return bytes;
}

std::vector<BlockIndex> sample_blocks(bool with_ancestor) {
  BlockIndex ram{.name = "pc.ram", .used_bytes = 16 * kPageSize, .runs = {}};
  ram.runs = {
      {.first_page = 0, .pages = 1, .kind = RunKind::kData, .frame = 0, .page_in_frame = 0},
      {.first_page = 1, .pages = 4, .kind = RunKind::kFree},
      {.first_page = 5, .pages = 2, .kind = RunKind::kData, .frame = 1, .page_in_frame = 0},
      {.first_page = 7, .pages = 2, .kind = RunKind::kFill, .fill = 0},
      {.first_page = 9, .pages = 1, .kind = RunKind::kFill, .fill = 0xaa},
      {.first_page = 10, .pages = 2, .kind = RunKind::kData, .frame = 2, .page_in_frame = 0},
      {.first_page = 12, .pages = 4, .kind = RunKind::kFree},
  };
  BlockIndex vram{.name = "vga.vram", .used_bytes = 2 * kPageSize, .runs = {}};
  vram.runs = {
      {.first_page = 0,
       .pages = 1,
       .kind = RunKind::kData,
       .frame = 3,
       .page_in_frame = with_ancestor ? 1u : 0u},
      {.first_page = 1, .pages = 1, .kind = RunKind::kFree, .fill = 0x6b},
  };
  return {ram, vram};
}

std::vector<std::byte> sample_content(u64 block, u64 page) {
  if (block == 1) {
    return page == 0 ? sample_page(11, true) : std::vector<std::byte>(kPageSize, std::byte{0x6b});
  }
  if (page == 0) return sample_page(0, false);
  if (page == 5 || page == 6 || page == 10 || page == 11) return sample_page(page, true);
  return std::vector<std::byte>(kPageSize, page == 9 ? std::byte{0xaa} : std::byte{0});
}

Result<Manifest> write_sample(CheckpointWriter& writer, const Sample& sample) {
  Manifest manifest;
  manifest.id = writer.id();
  manifest.created = sample.created;
  manifest.mode = "paused";
  manifest.vm_name = sample.vm_name;
  manifest.machine_type = "pc-q35-7.2";
  manifest.compression = "zstd:1";

  VMSIEVE_ASSIGN(auto object, writer.create("memory"));
  MemoryObjectWriter memory{*object, writer.id()};
  VMSIEVE_TRY(add_pages(memory, Codec::kLz4, 0, 1, false));  // does not compress: stored as it is
  VMSIEVE_TRY(add_pages(memory, Codec::kLz4, 5, 2, true));
  VMSIEVE_TRY(add_pages(memory, Codec::kZstd, 10, 2, true));
  if (sample.ancestor.empty()) {
    VMSIEVE_TRY(add_pages(memory, Codec::kNone, 11, 1, true));
  } else {
    VMSIEVE_TRY(memory.add_ancestor_frame(sample.ancestor, sample.ancestor_frame));
  }
  VMSIEVE_ASSIGN(ObjectRecord memory_record, memory.finish(sample_blocks(!sample.ancestor.empty())));
  manifest.ancestors = memory.ancestors();
  manifest.parent = sample.ancestor;

  VMSIEVE_ASSIGN(auto device, writer.create("device"));
  VMSIEVE_TRY(device->append(as_byte_span(sample.device)));
  VMSIEVE_TRY(device->finish());
  ObjectRecord device_record{
      .name = "device", .bytes = sample.device.size(), .checksum = checksum(as_byte_span(sample.device))};

  for (const BlockIndex& block : memory.index().blocks) {
    manifest.blocks.push_back(
        {.name = block.name, .used_bytes = block.used_bytes, .max_bytes = block.used_bytes});
    manifest.guest_bytes += block.used_bytes;
  }
  manifest.mappings = {{.address = 0, .bytes = 16 * kPageSize, .block = 0, .block_offset = 0}};
  manifest.pages = {.total = 18, .free = 9, .zero = 2, .fill = 1, .saved = 6};
  manifest.stored_bytes = memory_record.bytes + device_record.bytes;
  manifest.objects = {std::move(memory_record), std::move(device_record)};
  return manifest;
}

Result<void> commit_sample(DirectoryStore& store, const Sample& sample) {
  VMSIEVE_ASSIGN(auto writer, store.begin_as(sample.id));
  VMSIEVE_ASSIGN(const Manifest manifest, write_sample(*writer, sample));
  return writer->commit(manifest);
}

std::string fault_of(const Store& store, const std::string& id) {
  const auto reader = CheckpointReader::open(store, id);
  if (!reader.ok()) return reader.error().message();
  const auto verified = (*reader)->verify();
  return verified.ok() ? "" : verified.error().message();
}

StoreTest::StoreTest() : root_(directory_.path() / "store") {
  auto store = DirectoryStore::open_path(root_.string(), true);
  if (!store.ok()) std::abort();
  store_ = std::move(*store);
}

void StoreTest::commit(const std::string& id) {
  const auto committed = commit_sample(*store_, {.id = id});
  ASSERT_TRUE(committed.ok()) << committed.error().message();
}

}  // namespace vmsieve
