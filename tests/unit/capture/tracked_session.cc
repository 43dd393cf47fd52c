// SPDX-License-Identifier: Apache-2.0
#include "unit/capture/tracked_session.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "vmsieve/capture/memory_units.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/qemu/remote_userfaultfd.h"

namespace vmsieve::test {

namespace {

/// On a disk that is slow, or full from `fails_after` bytes on if `full` is set.
class SlowObject final : public ObjectWriter {
 public:
  SlowObject(std::unique_ptr<ObjectWriter> object, std::chrono::microseconds slowness, u64 fails_after,
             const std::atomic<bool>& full)
      : object_(std::move(object)), slowness_(slowness), fails_after_(fails_after), full_(full) {}
  Result<void> append(std::span<const std::byte> bytes) override {
    if (slowness_.count() > 0) std::this_thread::sleep_for(slowness_);
    if (full_ && object_->size() + bytes.size() > fails_after_)
      return Error(ErrorKind::kIo, "cannot write: No space left on device");
    return object_->append(bytes);
  }
  u64 size() const override { return object_->size(); }
  Result<void> finish() override { return object_->finish(); }

 private:
  const std::unique_ptr<ObjectWriter> object_;
  const std::chrono::microseconds slowness_;
  const u64 fails_after_;
  const std::atomic<bool>& full_;
};

/// Which pages of block 0, where page frames are page numbers, are free.
std::vector<bool> free_pages(const std::vector<PfnRange>& free, u64 pages) {
  std::vector<bool> is_free(pages);
  for (const PfnRange& range : free) {
    for (u64 page = range.first.value; page < range.end() && page < pages; ++page) is_free[page] = true;
  }
  return is_free;
}

}  // namespace

TrackedSession::TrackedSession(const WritingGuest::Options& options) : guest(options) {
  auto opened = LiveMemory::open(guest.pid(), guest.layout());
  EXPECT_TRUE(opened) << opened.error().message();
  memory = std::move(*opened);
  // In memory, where there is a place: the tests are not about the disk.
  const std::filesystem::path memory_folder = "/dev/shm";
  std::error_code ignored;
  const bool in_memory = std::filesystem::is_directory(memory_folder, ignored);
  std::string pattern =
      (in_memory ? memory_folder : std::filesystem::temp_directory_path()) / "vmsieve-tracked-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) std::abort();
  folder = pattern;
  auto made = DirectoryStore::open_path((folder / "store").string(), true);
  EXPECT_TRUE(made) << made.error().message();
  store = std::move(*made);
}

TrackedSession::~TrackedSession() {
  abandon();
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
}

void TrackedSession::track() {
  auto taken = take_userfaultfd(guest.pid());
  ASSERT_TRUE(taken) << taken.error().message();
  auto made = WriteProtection::make(std::move(*taken), WriteProtection::Mode::kNote);
  if (!made && made.error().kind() == ErrorKind::kUnsupported) GTEST_SKIP() << made.error().message();
  ASSERT_TRUE(made) << made.error().message();
  const MemoryUnits units(guest.layout());
  for (u32 block = 0; block < units.blocks(); ++block) {
    const ByteRange range = units.block(block);
    if (range.start == range.end) continue;
    const auto added = made->add(range);
    ASSERT_TRUE(added) << added.error().message();
  }
  protection = std::move(*made);
  auto begun = TrackedCapture::begin(*memory, guest.pid(), *protection);
  ASSERT_TRUE(begun) << begun.error().message();
  capture = std::move(*begun);
  first_ = true;
  base.reset();
}

Result<void> TrackedSession::begin(const Plan& plan) {
  plan_ = plan;
  if (plan.full) base.reset();
  if (!std::exchange(first_, false)) {
    VMSIEVE_ASSIGN(capture, TrackedCapture::make(*memory, guest.pid(), base.get()));
  }
  VMSIEVE_ASSIGN(checkpoint_, store->begin());
  VMSIEVE_ASSIGN(auto object, checkpoint_->create("memory"));
  object_ = std::make_unique<SlowObject>(std::move(object), plan.slowness, plan.fails_after, full_);
  full_ = !plan.fails_from_the_stop_on;
  writer_ = std::make_unique<MemoryObjectWriter>(*object_, checkpoint_->id());
  VMSIEVE_ASSIGN(pipeline_, CapturePipeline::make(*writer_, capture->lists(),
                                                  {.compression = {.codec = Codec::kLz4, .level = 1},
                                                   .threads = plan.threads,
                                                   .buffer_bytes = plan.buffer_bytes,
                                                   .chunk_pages = plan.chunk_pages,
                                                   .base = plan.compared ? base.get() : nullptr,
                                                   .compared_blocks = std::vector<bool>(
                                                       memory->layout().blocks.size(), plan.compared)}));
  return {};
}

void TrackedSession::abandon() {
  pipeline_.reset();
  capture.reset();
  writer_.reset();
  object_.reset();
  checkpoint_.reset();
}

void TrackedSession::stop() {
  ASSERT_TRUE(guest.stop());
  truth_ = guest.truth();
  full_ = true;
}

void TrackedSession::save(const Plan& plan) {
  const auto begun = begin(plan);
  ASSERT_TRUE(begun) << begun.error().message();
  const auto ahead = copy_ahead();
  ASSERT_TRUE(ahead) << ahead.error().message();
  plan.before_the_stop();
  stop();
  if (testing::Test::HasFatalFailure()) return;
  const auto frozen = freeze();
  guest.resume();
  ASSERT_TRUE(frozen) << frozen.error().message();
  const auto submitted = submit();
  ASSERT_TRUE(submitted) << submitted.error().message();
  commit();
  if (testing::Test::HasFatalFailure()) return;
  compare();
}

void TrackedSession::commit() {
  auto outcome = pipeline_->finish();
  ASSERT_TRUE(outcome) << outcome.error().message();
  counts = {};
  auto blocks = capture->index(*outcome, *writer_, 0, counts);
  ASSERT_TRUE(blocks) << blocks.error().message();
  const auto memory_record = writer_->finish(std::move(*blocks));
  ASSERT_TRUE(memory_record) << memory_record.error().message();
  new_frames = 0;
  for (const Frame& frame : writer_->index().frames) new_frames += frame.object == 0 ? 1 : 0;

  auto device = checkpoint_->create("device");
  ASSERT_TRUE(device) << device.error().message();
  const std::string state = "the state of all devices";
  const auto bytes = std::as_bytes(std::span{state});
  ASSERT_TRUE((*device)->append(bytes));
  ASSERT_TRUE((*device)->finish());
  const Manifest m =
      manifest(*memory_record, {.name = "device", .bytes = bytes.size(), .checksum = checksum(bytes)});
  const auto committed = checkpoint_->commit(m);
  ASSERT_TRUE(committed) << committed.error().message();
  // Only now: the capture looks into the base.
  capture.reset();
  auto opened = CheckpointReader::open(*store, m.id);
  ASSERT_TRUE(opened) << opened.error().message();
  base = std::move(*opened);
}

Manifest TrackedSession::manifest(const ObjectRecord& memory_record,
                                  const ObjectRecord& device_record) const {
  Manifest m;
  m.id = checkpoint_->id();
  m.created = "2026-01-31T12:34:56.789Z";
  m.mode = "live";
  m.vm_name = "guest";
  m.machine_type = "none";
  m.compression = "lz4:1";
  m.ancestors = writer_->ancestors();
  m.parent = base ? base->manifest().id : "";
  m.pages = counts;
  const RamLayout layout = guest.layout();
  for (const RamBlock& block : layout.blocks) {
    m.blocks.push_back({.name = block.name,
                        .used_bytes = block.used_bytes,
                        .max_bytes = block.max_bytes,
                        .host_page_bytes = block.host_page_bytes,
                        .guest_ram = block.guest_ram});
    m.guest_bytes += block.used_bytes;
    m.pages.total += round_up(block.used_bytes, kPageSize) >> kPageShift;
  }
  for (const RamMapping& mapping : layout.mappings)
    m.mappings.push_back({mapping.address.value, mapping.bytes, mapping.block, mapping.block_offset});
  m.objects = {memory_record, device_record};
  m.stored_bytes = memory_record.bytes + device_record.bytes;
  return m;
}

void TrackedSession::compare() {
  int faults = 0;
  CheckpointReader::Scratch scratch;
  std::optional<u64> decoded;  // which frame is in `scratch`
  std::span<const std::byte> frame;
  for (u32 block = 0; block < guest.layout().blocks.size(); ++block) {
    const std::vector<bool> is_free =
        free_pages(block == 0 ? plan_.free : std::vector<PfnRange>{}, guest.pages(block));
    u64 page = 0;
    for (const PageRun& run : base->index().blocks[block].runs) {
      if (run.kind == RunKind::kData && decoded != run.frame) {
        const auto read = base->read_frame(run.frame, scratch);
        ASSERT_TRUE(read) << read.error().message();
        frame = *read;
        decoded = run.frame;
      }
      for (u64 i = 0; i < run.pages; ++i, ++page) {
        EXPECT_EQ(run.kind == RunKind::kFree, is_free[page]) << "block " << block << " page " << page;
        if (run.kind == RunKind::kFree) continue;
        std::vector<std::byte> filled;
        std::span<const std::byte> saved;
        if (run.kind == RunKind::kData) {
          saved = frame.subspan((run.page_in_frame + i) * kPageSize, kPageSize);
        } else {
          filled.assign(kPageSize, std::byte{run.fill});
          saved = filled;
        }
        const auto expected = guest.truth_of(truth_, block, page);
        if (std::memcmp(saved.data(), expected.data(), kPageSize) == 0) continue;
        ADD_FAILURE() << "block " << block << " page " << page << ": saved " << WritingGuest::describe(saved)
                      << ", was " << WritingGuest::describe(expected);
        if (++faults == 5) return;
      }
    }
    EXPECT_EQ(page, guest.pages(block));
  }
}

}  // namespace vmsieve::test
