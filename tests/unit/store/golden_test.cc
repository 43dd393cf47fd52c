// SPDX-License-Identifier: Apache-2.0
// Files of format version 1 that every later version must go on reading (tests/golden/v1), and damaged ones
// with the error that each must give (tests/golden/corrupt). The files are written by the test
// GoldenFiles.Write, only when VMSIEVE_WRITE_GOLDEN names the folder to write to; look at every difference
// before committing it.
#include <algorithm>
#include <cstdlib>
#include <functional>

#include <nlohmann/json.hpp>

#include "unit/store/store_fixture.h"
#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

using Bytes = std::vector<std::byte>;

const fs::path kGolden = fs::path{VMSIEVE_TEST_DATA} / "golden";
constexpr u64 kPages = 8;
constexpr u64 kTrailerObjectBytes = 8192 + 100 + kMemoryTrailerBytes;

struct GoldenCheckpoint {
  const char* id;
  Codec codec;
  const char* parent;  ///< whose frame 1 the last page is taken from, or empty
};
constexpr GoldenCheckpoint kCheckpoints[] = {{"0000000000000001", Codec::kNone, ""},
                                             {"0000000000000002", Codec::kLz4, ""},
                                             {"0000000000000003", Codec::kZstd, ""},
                                             {"0000000000000004", Codec::kZstd, "0000000000000003"}};

/// The golden guest: pages 0, 1 and 7 hold text, 2 to 4 are free, 5 is zero, 6 is 0x5a throughout.
Bytes golden_page(u64 page) {
  if (page == 0 || page == 1 || page == 7) return sample_page(page, true);
  return Bytes(kPageSize, page == 6 ? std::byte{0x5a} : std::byte{0});
}

std::vector<BlockIndex> golden_blocks() {
  BlockIndex ram{.name = "pc.ram", .used_bytes = kPages * kPageSize, .runs = {}};
  ram.runs = {{.first_page = 0, .pages = 2, .kind = RunKind::kData, .frame = 0, .page_in_frame = 0},
              {.first_page = 2, .pages = 3, .kind = RunKind::kFree},
              {.first_page = 5, .pages = 1, .kind = RunKind::kFill, .fill = 0},
              {.first_page = 6, .pages = 1, .kind = RunKind::kFill, .fill = 0x5a},
              {.first_page = 7, .pages = 1, .kind = RunKind::kData, .frame = 1, .page_in_frame = 0}};
  return {ram};
}

constexpr std::string_view kDevice = "QEVM golden device state";

Manifest golden_manifest(const GoldenCheckpoint& golden, ObjectRecord memory) {
  Manifest m;
  m.id = golden.id;
  m.created = fmt::format("2026-01-0{}T00:00:00.000Z", golden.id[15]);
  m.mode = "paused";
  m.parent = golden.parent;
  m.vm_name = "golden";
  m.vm_pid = 4711;
  m.qemu_version = "7.2.9";
  m.qemu_package = "Debian 1:7.2+dfsg-7";
  m.qemu_executable = "/usr/bin/qemu-system-x86_64";
  m.machine_type = "pc-q35-7.2";
  m.accelerator = "kvm";
  m.vcpus = 2;
  m.command_line = {"qemu-system-x86_64", "-name", "golden", "-drive", "file=/images/caf\xe9.qcow2"};
  m.working_directory = "/";
  m.blocks = {{.name = "pc.ram",
               .used_bytes = kPages * kPageSize,
               .max_bytes = kPages * kPageSize,
               .guest_ram = true}};
  m.mappings = {{.address = 0, .bytes = kPages * kPageSize, .block = 0, .block_offset = 0}};
  m.writable_disks = {{.device = "ide0-hd0", .file = "/images/caf\xe9.qcow2"}};
  m.introspection = {.used = true, .kernel = "6.1.0-18-cloud-amd64", .reason = "", .classify_ms = 3.25};
  m.pages = {.total = 8, .free = 3, .zero = 1, .fill = 1, .saved = 3};
  m.pause_ms = 12.5;
  m.total_ms = 100;
  m.guest_bytes = kPages * kPageSize;
  m.stored_bytes = memory.bytes + kDevice.size();
  m.compression = Compression{golden.codec, 1}.text();
  if (*golden.parent != '\0') m.ancestors = {golden.parent};
  m.objects = {std::move(memory),
               {.name = "device", .bytes = kDevice.size(), .checksum = checksum(as_byte_span(kDevice))}};
  return m;
}

Result<void> write_checkpoint(DirectoryStore& store, const GoldenCheckpoint& golden) {
  VMSIEVE_ASSIGN(auto writer, store.begin_as(golden.id));
  VMSIEVE_ASSIGN(auto object, writer->create("memory"));
  MemoryObjectWriter memory{*object, golden.id};
  FrameEncoder encoder{{golden.codec, 1}};
  Bytes raw = golden_page(0);
  append_bytes(raw, golden_page(1));
  Bytes stored;
  Frame frame = encoder.encode(raw, stored);
  VMSIEVE_TRY(memory.add_frame(frame, stored));
  if (*golden.parent == '\0') {
    frame = encoder.encode(golden_page(7), stored);
    VMSIEVE_TRY(memory.add_frame(frame, stored));
  } else {
    VMSIEVE_ASSIGN(const auto parent, CheckpointReader::open(store, golden.parent));
    VMSIEVE_TRY(memory.add_ancestor_frame(golden.parent, parent->index().frames[1]));
  }
  VMSIEVE_ASSIGN(ObjectRecord record, memory.finish(golden_blocks()));
  VMSIEVE_ASSIGN(auto device, writer->create("device"));
  VMSIEVE_TRY(device->append(as_byte_span(kDevice)));
  VMSIEVE_TRY(device->finish());
  return writer->commit(golden_manifest(golden, std::move(record)));
}

/// "KIND: MESSAGE" that a damaged file gives, by the ending of its name.
std::string error_of(const fs::path& file) {
  const std::string text = read_file(file);
  const auto bytes = as_byte_span(text);
  const auto say = [](const auto& result) {
    return result.ok() ? std::string{"no error"}
                       : fmt::format("{}: {}", to_string(result.error().kind()), result.error().message());
  };
  if (file.extension() == ".manifest") return say(decode_manifest(text));
  if (file.extension() == ".index") return say(decode_index(bytes));
  if (file.extension() == ".header") return say(check_memory_header(bytes, "0000000000000001"));
  if (file.extension() == ".trailer") return say(decode_memory_trailer(bytes, kTrailerObjectBytes));
  return "a file of unknown kind";
}

TEST(GoldenFiles, OfVersionOneAreReadAndVerified) {
  const auto store = open_directory_store((kGolden / "v1").string(), false);
  ASSERT_TRUE(store.ok()) << store.error().message();
  const auto listing = (*store)->list();
  ASSERT_TRUE(listing.ok());
  EXPECT_TRUE(listing->damaged.empty());
  ASSERT_EQ(listing->checkpoints.size(), std::size(kCheckpoints));
  for (const GoldenCheckpoint& golden : kCheckpoints) EXPECT_EQ(fault_of(**store, golden.id), "");
}

TEST(GoldenFiles, OfVersionOneGiveTheGuestsPages) {
  const auto store = open_directory_store((kGolden / "v1").string(), false);
  ASSERT_TRUE(store.ok()) << store.error().message();
  for (const GoldenCheckpoint& golden : kCheckpoints) {
    const auto reader = CheckpointReader::open(**store, golden.id);
    ASSERT_TRUE(reader.ok()) << reader.error().message();
    EXPECT_EQ((*reader)->index().frames[0].codec, golden.codec);
    EXPECT_EQ(*(*reader)->device_state(), bytes_of(kDevice));
    ASSERT_EQ((*reader)->index().blocks, golden_blocks());
    CheckpointReader::Scratch scratch;
    for (const PageRun& run : (*reader)->index().blocks[0].runs) {
      if (run.kind != RunKind::kData) continue;
      const auto frame = (*reader)->read_frame(run.frame, scratch);
      ASSERT_TRUE(frame.ok()) << frame.error().message();
      for (u64 i = 0; i < run.pages; ++i) {
        const auto page = frame->subspan((run.page_in_frame + i) * kPageSize, kPageSize);
        EXPECT_EQ(Bytes(page.begin(), page.end()), golden_page(run.first_page + i));
      }
    }
  }
}

TEST(GoldenFiles, OfVersionOneGiveTheManifest) {
  const auto store = open_directory_store((kGolden / "v1").string(), false);
  ASSERT_TRUE(store.ok()) << store.error().message();
  for (const GoldenCheckpoint& golden : kCheckpoints) {
    const auto manifest = (*store)->manifest(golden.id);
    ASSERT_TRUE(manifest.ok()) << manifest.error().message();
    EXPECT_EQ(encode_manifest(*manifest), encode_manifest(golden_manifest(golden, manifest->objects[0])));
  }
}

TEST(GoldenFiles, OfVersionOneAreWrittenTheSameToday) {
  const TemporaryDirectory directory;
  const auto store = DirectoryStore::open_path(directory.path().string(), true);
  ASSERT_TRUE(store.ok());
  // What LZ4 and Zstandard write may change with their version; all else may not.
  const GoldenCheckpoint& golden = kCheckpoints[0];
  ASSERT_TRUE(write_checkpoint(**store, golden).ok());
  for (const char* name : {"memory", "device", "manifest"}) {
    const fs::path file = fs::path{"checkpoints"} / golden.id / name;
    EXPECT_EQ(read_file(directory.path() / file), read_file(kGolden / "v1" / file)) << name;
  }
}

TEST(GoldenFiles, CorruptOnesGiveTheErrorThatStandsBesideThem) {
  int files = 0;
  for (const auto& entry : fs::directory_iterator(kGolden / "corrupt")) {
    if (entry.path().extension() == ".error" || entry.path().extension() == ".md") continue;
    ++files;
    EXPECT_EQ(error_of(entry.path()) + "\n", read_file(entry.path().string() + ".error")) << entry.path();
  }
  EXPECT_GE(files, 20);
}

// ---- the generator ----

void put(const fs::path& folder, const std::string& name, std::string_view content) {
  write_file(folder / name, content);
  write_file(folder / (name + ".error"), error_of(folder / name) + "\n");
}

void put(const fs::path& folder, const std::string& name, const Bytes& content) {
  put(folder, name, std::string_view{reinterpret_cast<const char*>(content.data()), content.size()});
}

void write_corrupt_manifests(const fs::path& folder) {
  const std::string good = encode_manifest(golden_manifest(kCheckpoints[0], {.name = "memory", .bytes = 1}));
  const std::string body = good.substr(good.find('\n') + 1);
  const auto with_header = [](const std::string& json) {
    return fmt::format("vmsieve-manifest 1 {} {:016x}\n{}", json.size(), checksum(as_byte_span(json)), json);
  };
  const auto changed = [&](std::string_view from, std::string_view to) {
    std::string json = body;
    json.replace(json.find(from), from.size(), to);
    return with_header(json);
  };
  put(folder, "empty.manifest", std::string_view{});
  put(folder, "no-magic.manifest", body);
  put(folder, "version-2.manifest", "vmsieve-manifest 2" + good.substr(18));
  put(folder, "cut-off.manifest", good.substr(0, good.size() / 2));
  std::string flipped = good;
  flipped[good.size() / 2] = static_cast<char>(flipped[good.size() / 2] ^ 1);
  put(folder, "bit-flip.manifest", flipped);
  put(folder, "no-json.manifest", with_header("{\"id\": "));
  put(folder, "deep-json.manifest", with_header(std::string(40, '[') + std::string(40, ']')));
  put(folder, "missing-member.manifest", changed("\"mode\": \"paused\",", ""));
  put(folder, "unknown-feature.manifest",
      changed("\"required_features\": []", "\"required_features\": [\"encryption\"]"));
  put(folder, "path-for-id.manifest", changed("\"0000000000000001\"", "\"../../etc/passwd\""));
  put(folder, "path-for-object.manifest", changed("\"name\": \"memory\"", "\"name\": \"../memory\""));
  put(folder, "mapping-beyond-block.manifest", changed("\"block_offset\": 0", "\"block_offset\": 4096"));
  put(folder, "negative-count.manifest", changed("\"free\": 3", "\"free\": -3"));
}

MemoryIndex small_index() {
  MemoryIndex index;
  index.frames = {
      {.codec = Codec::kNone, .offset = 4096, .stored_bytes = 8192, .raw_bytes = 8192, .checksum = 1},
      {.codec = Codec::kLz4, .offset = 12288, .stored_bytes = 300, .raw_bytes = 4096, .checksum = 2}};
  index.blocks = golden_blocks();
  return index;
}

void write_corrupt_indexes(const fs::path& folder) {
  const auto changed = [](const std::function<void(MemoryIndex&)>& change) {
    MemoryIndex index = small_index();
    change(index);
    return encode_index(index);
  };
  const auto patched = [](std::size_t at, u8 value) {
    Bytes bytes = encode_index(small_index());
    bytes[at] = std::byte{value};
    return bytes;
  };
  Bytes cut = encode_index(small_index());
  cut.resize(cut.size() - 3);
  put(folder, "cut-off.index", cut);
  put(folder, "version-2.index", patched(8, 2));
  put(folder, "unknown-feature.index", patched(24, 8));
  put(folder, "absurd-frame-count.index", patched(46, 0xff));
  put(folder, "absurd-run-count.index", patched(62, 0xff));
  put(folder, "unknown-codec.index", changed([](auto& i) { i.frames[1].codec = static_cast<Codec>(7); }));
  put(folder, "overlapping-frames.index", changed([](auto& i) { i.frames[1].offset = 12287; }));
  put(folder, "frame-over-header.index", changed([](auto& i) { i.frames[0].offset = 0; }));
  put(folder, "frame-of-256-mib.index", changed([](auto& i) { i.frames[1].raw_bytes = 256 * kMiB; }));
  put(folder, "frame-of-no-ancestor.index", changed([](auto& i) { i.frames[1].object = 1; }));
  put(folder, "run-beyond-frame.index", changed([](auto& i) { i.blocks[0].runs[4].page_in_frame = 1; }));
  put(folder, "run-beyond-block.index", changed([](auto& i) { i.blocks[0].runs[1].pages = 300; }));
  put(folder, "uncovered-page.index", changed([](auto& i) { i.blocks[0].runs.pop_back(); }));
  put(folder, "same-block-twice.index", changed([](auto& i) { i.blocks.push_back(i.blocks[0]); }));
}

void write_corrupt_ends(const fs::path& folder) {
  Bytes header = encode_memory_header("0000000000000001");
  header[200] = std::byte{1};
  put(folder, "bit-flip.header", header);
  put(folder, "other-checkpoint.header", encode_memory_header("0000000000000002"));
  const auto sealed = [](Bytes bytes, std::size_t at, u8 value) {
    bytes[at] = std::byte{value};
    bytes.resize(bytes.size() - 8);
    append_le(bytes, checksum(bytes));
    return bytes;
  };
  put(folder, "version-2.header", sealed(encode_memory_header("0000000000000001"), 8, 2));
  put(folder, "unknown-feature.header", sealed(encode_memory_header("0000000000000001"), 33, 1));
  put(folder, "page-of-8k.header", sealed(encode_memory_header("0000000000000001"), 25, 0x20));
  const MemoryTrailer good{.index_offset = 8192, .index_bytes = 100, .index_checksum = 3};
  put(folder, "reserved.trailer", sealed(encode_memory_trailer(good), 44, 1));
  put(folder, "index-in-header.trailer",
      encode_memory_trailer({.index_offset = 0, .index_bytes = 8292, .index_checksum = 3}));
  put(folder, "index-too-long.trailer",
      encode_memory_trailer({.index_offset = 8192, .index_bytes = ~u64{0}, .index_checksum = 3}));
}

TEST(GoldenFiles, Write) {
  const char* target = std::getenv("VMSIEVE_WRITE_GOLDEN");
  if (target == nullptr) GTEST_SKIP() << "set VMSIEVE_WRITE_GOLDEN to the folder to write to";
  const fs::path root = target;
  fs::remove_all(root / "v1");
  const auto store = DirectoryStore::open_path((root / "v1").string(), true);
  ASSERT_TRUE(store.ok()) << store.error().message();
  for (const GoldenCheckpoint& golden : kCheckpoints) {
    const auto written = write_checkpoint(**store, golden);
    ASSERT_TRUE(written.ok()) << written.error().message();
  }
  fs::remove(root / "v1/lock");
  fs::create_directories(root / "corrupt");
  write_corrupt_manifests(root / "corrupt");
  write_corrupt_indexes(root / "corrupt");
  write_corrupt_ends(root / "corrupt");
}

}  // namespace
}  // namespace vmsieve
