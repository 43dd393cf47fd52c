// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "unit/capture/writing_guest.h"
#include "vmsieve/capture/live_capture.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/qemu/remote_userfaultfd.h"
#include "vmsieve/store/memory_writer.h"

namespace vmsieve::test {

using namespace std::chrono_literals;
using Order = WritingGuest::Order;

/// An object in memory. `slowness` passes at every append; from `fail_after` bytes on it is a full disk.
class MemoryObject final : public ObjectWriter {
 public:
  explicit MemoryObject(std::chrono::microseconds slowness = 0us, u64 fail_after = ~u64{0})
      : slowness_(slowness), fail_after_(fail_after) {}
  Result<void> append(std::span<const std::byte> more) override {
    if (on_append) on_append();
    if (slowness_ > 0us) std::this_thread::sleep_for(slowness_);
    if (bytes.size() + more.size() > fail_after_)
      return Error(ErrorKind::kIo, "cannot write: No space left on device");
    bytes.insert(bytes.end(), more.begin(), more.end());
    return {};
  }
  u64 size() const override { return bytes.size(); }
  Result<void> finish() override { return {}; }

  std::vector<std::byte> bytes;
  std::function<void()> on_append;

 private:
  const std::chrono::microseconds slowness_;
  const u64 fail_after_;
};

/// Where what is captured goes.
struct Store {
  explicit Store(u32 blocks, const CapturePipeline::Options& options = roomy(),
                 std::chrono::microseconds slowness = 0us, u64 fail_after = ~u64{0})
      : object(slowness, fail_after) {
    auto made = CapturePipeline::make(writer, blocks, options);
    EXPECT_TRUE(made) << made.error().message();
    pipeline = std::move(*made);
    pipeline->open_gate();
  }
  static CapturePipeline::Options roomy() {
    return {.compression = {.codec = Codec::kLz4, .level = 1}, .threads = 2, .buffer_bytes = 8 * kMiB};
  }
  static CapturePipeline::Options tiny() {
    return {.compression = {.codec = Codec::kLz4, .level = 1},
            .threads = 1,
            .buffer_bytes = 8 * kPageSize,
            .chunk_pages = 4};
  }

  MemoryObject object;
  MemoryObjectWriter writer{object, "0123456789abcdef"};
  std::unique_ptr<CapturePipeline> pipeline;
};

inline const ProgressFunction kSilent = [](const Progress&) {};

/// Every page that was captured, decoded. Fails the test when a page is missing or there twice, and leaves it
/// out then. Free pages are empty.
using Pages = std::vector<std::vector<std::vector<std::byte>>>;  // by block and page
inline Pages decode(const RamLayout& layout, const PagePlan& plan, Store& store) {
  Pages pages(layout.blocks.size());
  auto outcome = store.pipeline->finish();
  EXPECT_TRUE(outcome) << outcome.error().message();
  if (!outcome) return pages;
  std::vector<BlockIndex> index;
  for (std::size_t block = 0; block < layout.blocks.size(); ++block) {
    std::vector<PageRun>& runs = outcome->runs[block];
    runs.insert(runs.end(), plan.blocks[block].known.begin(), plan.blocks[block].known.end());
    std::sort(runs.begin(), runs.end(),
              [](const PageRun& a, const PageRun& b) { return a.first_page < b.first_page; });
    index.push_back({layout.blocks[block].name, layout.blocks[block].used_bytes, {}});
    for (const PageRun& run : runs) {
      PageRun* const last = index.back().runs.empty() ? nullptr : &index.back().runs.back();
      const bool joins =
          last != nullptr && last->kind == run.kind && run.kind != RunKind::kData && last->fill == run.fill;
      if (joins) {
        last->pages += run.pages;
      } else {
        index.back().runs.push_back(run);
      }
    }
  }
  // Checks that the runs cover every page once.
  const auto finished = store.writer.finish(index);
  EXPECT_TRUE(finished) << finished.error().message();
  if (!finished) return pages;
  std::vector<std::vector<std::byte>> frames;
  for (const Frame& frame : store.writer.index().frames) {
    frames.emplace_back();
    const auto decoded = decode_frame(
        frame, std::span(store.object.bytes).subspan(frame.offset, frame.stored_bytes), frames.back());
    EXPECT_TRUE(decoded) << decoded.error().message();
  }
  for (std::size_t block = 0; block < index.size(); ++block) {
    for (const PageRun& run : index[block].runs) {
      for (u64 i = 0; i < run.pages; ++i) {
        std::vector<std::byte> page;
        if (run.kind == RunKind::kFill) page.assign(kPageSize, std::byte{run.fill});
        if (run.kind == RunKind::kData) {
          const auto from = frames[run.frame].begin() + static_cast<i64>((run.page_in_frame + i) * kPageSize);
          page.assign(from, from + kPageSize);
        }
        pages[block].push_back(std::move(page));
      }
    }
  }
  return pages;
}

/// Not std::ranges::equal: checked byte by byte under a sanitizer, it would be most of the tests' time.
inline bool same(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

inline void expect_equal(const Pages& captured, const WritingGuest& guest,
                         const std::vector<std::byte>& truth) {
  int faults = 0;
  for (u32 block = 0; block < captured.size(); ++block) {
    ASSERT_EQ(captured[block].size(), guest.pages(block));
    for (u64 page = 0; page < captured[block].size(); ++page) {
      if (captured[block][page].empty()) continue;
      const auto expected = guest.truth_of(truth, block, page);
      if (same(captured[block][page], expected)) continue;
      ADD_FAILURE() << "block " << block << " page " << page << ": captured "
                    << WritingGuest::describe(captured[block][page]) << ", was "
                    << WritingGuest::describe(expected);
      if (++faults == 5) return;
    }
  }
}

/// One guest and a live capture of it.
class Session {
 public:
  explicit Session(const WritingGuest::Options& options, const LiveCapture::Options& live = {})
      : guest(options) {
    auto opened = LiveMemory::open(guest.pid(), guest.layout());
    EXPECT_TRUE(opened) << opened.error().message();
    memory = std::move(*opened);
    live_options_ = live;
  }

  void start() {
    auto started = try_start();
    if (!started && started.error().kind() == ErrorKind::kUnsupported)
      GTEST_SKIP() << started.error().message();
    ASSERT_TRUE(started) << started.error().message();
    capture = std::move(*started);
  }
  Result<std::unique_ptr<LiveCapture>> try_start() {
    VMSIEVE_ASSIGN(UniqueFd userfaultfd, take_userfaultfd(guest.pid()));
    VMSIEVE_ASSIGN(WriteProtection protection, WriteProtection::make(std::move(userfaultfd)));
    return LiveCapture::start(*memory, guest.pid(), std::move(protection), live_options_);
  }

  /// The guest stops for it and runs again.
  void instant() {
    ASSERT_TRUE(guest.stop());
    truth = guest.truth();
    const auto frozen = capture->freeze();
    ASSERT_TRUE(frozen) << frozen.error().message();
    guest.resume();
  }

  PagePlan plan(const std::vector<PfnRange>& free = {}) const {
    return plan_pages(
        guest.layout(), free, 0,
        [&](u32 block, u64 first, u64 count) { return capture->resident(block, first, count); },
        Ask::kAlways);
  }

  Result<void> copy(const PagePlan& plan, Store& store, unsigned threads = 2) {
    return capture->copy(plan, *store.pipeline, threads, kSilent);
  }

  /// Copies everything and compares.
  void expect_all_of_the_instant(Store& store, unsigned threads = 2, const std::vector<PfnRange>& free = {}) {
    const PagePlan planned = plan(free);
    const auto copied = copy(planned, store, threads);
    ASSERT_TRUE(copied) << copied.error().message();
    expect_equal(decode(guest.layout(), planned, store), guest, truth);
  }

  WritingGuest guest;
  std::unique_ptr<LiveMemory> memory;
  std::unique_ptr<LiveCapture> capture;
  std::vector<std::byte> truth;

 private:
  LiveCapture::Options live_options_;
};

#define START_OR_RETURN(session) \
  session.start();               \
  if (session.capture == nullptr) return

inline constexpr u64 kMainPages = 2048;  // of the first block
inline constexpr u64 kReserved = 512;    // one unit

/// How the guest's memory is made.
struct Kind {
  const char* label;
  std::vector<WritingGuest::BlockSpec> blocks;
};

inline void PrintTo(const Kind& kind, std::ostream* out) { *out << kind.label; }

inline const Kind kKinds[] = {
    {"private", {{.pages = kMainPages}, {.pages = 700, .pages_off_unit = 7}}},
    {"shared",
     {{.pages = kMainPages, .shared = true}, {.pages = 700, .shared = true, .pages_off_unit = 511}}},
    {"mixed",
     {{.pages = kMainPages},
      {.pages = 5, .pages_off_unit = 510},
      {.pages = 0},
      {.pages = 800, .shared = true, .pages_off_unit = 100},
      {.pages = 512, .huge = true}}},
    {"huge", {{.pages = kMainPages, .huge = true}, {.pages = 512, .shared = true, .huge = true}}},
};

class Live : public testing::TestWithParam<Kind> {
 protected:
  Live()
      : seed_(std::random_device{}()),
        random_(seed_),
        trace_(__FILE__, __LINE__, fmt::format("seed {}", seed_)) {}

  WritingGuest::Options guest() {
    return {
        .blocks = GetParam().blocks, .writers = 2, .reserved_pages = kReserved, .seed = random_() % 100000};
  }
  u64 below(u64 limit) { return std::uniform_int_distribution<u64>(0, limit - 1)(random_); }
  void sleep_up_to(std::chrono::microseconds most) {
    std::this_thread::sleep_for(std::chrono::microseconds(below(static_cast<u64>(most.count()))));
  }
  /// Page frames of the first block.
  std::vector<PfnRange> some_free_pages() {
    std::vector<PfnRange> free;
    for (u64 at = below(100); at < kMainPages - kReserved;) {
      const u64 count = std::min(1 + below(below(2) == 0 ? 10 : 900), kMainPages - kReserved - at);
      free.push_back({Pfn{at}, count});
      at += count + 1 + below(300);
    }
    return free;
  }

  const u64 seed_;
  std::mt19937_64 random_;
  const testing::ScopedTrace trace_;
};

}  // namespace vmsieve::test
