// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/pipeline.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <thread>

#include <gtest/gtest.h>

namespace vmsieve {
namespace {

/// An object in memory; from `fail_after` bytes on it is a full disk.
class MemoryObject final : public ObjectWriter {
 public:
  explicit MemoryObject(u64 fail_after = ~u64{0}) : fail_after_(fail_after) {}
  Result<void> append(std::span<const std::byte> more) override {
    if (bytes.size() + more.size() > fail_after_)
      return Error(ErrorKind::kIo, "cannot write: No space left on device");
    bytes.insert(bytes.end(), more.begin(), more.end());
    return {};
  }
  u64 size() const override { return bytes.size(); }
  Result<void> finish() override { return {}; }

  std::vector<std::byte> bytes;

 private:
  u64 fail_after_;
};

/// Writes nothing before somebody waits for it, as a slow disk.
class LateObject final : public ObjectWriter {
 public:
  Result<void> append(std::span<const std::byte> more) override {
    size_ += more.size();
    return {};
  }
  Result<void> append_in_place(std::span<const std::byte> more, std::function<void()> release) override {
    size_ += more.size();
    under_way_.push_back({{more.begin(), more.end()}, more, std::move(release)});
    return {};
  }
  bool settle_one() override {
    if (under_way_.empty()) return false;
    const UnderWay& oldest = under_way_.front();
    unchanged = unchanged && std::equal(oldest.now.begin(), oldest.now.end(), oldest.before.begin());
    oldest.release();
    under_way_.pop_front();
    ++settled;
    return true;
  }
  u64 size() const override { return size_; }
  Result<void> finish() override { return {}; }

  bool unchanged = true;
  u64 settled = 0;

 private:
  struct UnderWay {
    std::vector<std::byte> before;
    std::span<const std::byte> now;
    std::function<void()> release;
  };
  std::deque<UnderWay> under_way_;
  u64 size_ = 0;
};

void fill_page(std::byte* page, u64 seed) {
  for (u64 i = 0; i < kPageSize; i += 8) {
    const u64 word = (seed + 1) * 0x9e3779b97f4a7c15U ^ (i * 0xbf58476d1ce4e5b9U);
    std::memcpy(page + i, &word, 8);
  }
}

TEST(SortPages, MovesDataToTheFrontAndNamesTheFills) {
  std::vector<std::byte> buffer(5 * kPageSize);
  std::memset(buffer.data() + kPageSize, 0x77, kPageSize);
  fill_page(buffer.data() + 2 * kPageSize, 1);
  fill_page(buffer.data() + 4 * kPageSize, 2);
  const std::vector<std::byte> before = buffer;
  const Chunk chunk{.block = 0, .pages = 5, .runs = {{10, 3}, {20, 2}}};
  u64 data_pages = 0;
  const std::vector<PageRun> runs = sort_pages(chunk, buffer.data(), data_pages);
  ASSERT_EQ(data_pages, 2U);
  EXPECT_EQ(std::memcmp(buffer.data(), before.data() + 2 * kPageSize, kPageSize), 0);
  EXPECT_EQ(std::memcmp(buffer.data() + kPageSize, before.data() + 4 * kPageSize, kPageSize), 0);
  const std::vector<PageRun> expected = {
      {.first_page = 10, .pages = 1, .kind = RunKind::kFill},
      {.first_page = 11, .pages = 1, .kind = RunKind::kFill, .fill = 0x77},
      {.first_page = 12, .pages = 1, .kind = RunKind::kData},
      {.first_page = 20, .pages = 1, .kind = RunKind::kFill},
      {.first_page = 21, .pages = 1, .kind = RunKind::kData, .page_in_frame = 1}};
  EXPECT_EQ(runs, expected);
}

CapturePipeline::Options small_options() {
  return {.compression = {.codec = Codec::kLz4, .level = 1},
          .threads = 2,
          .buffer_bytes = 64 * kPageSize,
          .chunk_pages = 4};
}

TEST(CapturePipeline, TellsWhereEveryPageWentThoughTheBuffersAreFew) {
  MemoryObject object;
  MemoryObjectWriter writer(object, "0123456789abcdef");
  auto pipeline = CapturePipeline::make(writer, 1, small_options());
  ASSERT_TRUE(pipeline.ok());
  constexpr u64 kChunks = 200;
  for (u64 i = 0; i < kChunks; ++i) {
    std::byte* buffer = (*pipeline)->acquire();
    ASSERT_NE(buffer, nullptr);
    std::memset(buffer, 0, 4 * kPageSize);
    fill_page(buffer + kPageSize, i);
    (*pipeline)->submit({.block = 0, .pages = 4, .runs = {{4 * i, 4}}}, buffer);
  }
  const auto outcome = (*pipeline)->finish();
  ASSERT_TRUE(outcome.ok());
  EXPECT_EQ(outcome->counts.zero, 3 * kChunks);
  EXPECT_EQ(outcome->counts.saved, kChunks);
  u64 pages = 0;
  for (const PageRun& run : outcome->runs[0]) pages += run.pages;
  EXPECT_EQ(pages, 4 * kChunks);
}

TEST(CapturePipeline, BuffersThatAreWrittenFromWhereTheyAreComeBack) {
  LateObject object;
  MemoryObjectWriter writer(object, "0123456789abcdef");
  auto options = small_options();
  options.compression = {.codec = Codec::kNone, .level = 1};
  options.buffer_bytes = 0;  // the fewest that it works with
  auto pipeline = CapturePipeline::make(writer, 1, options);
  ASSERT_TRUE(pipeline.ok());
  for (u64 i = 0; i < 300; ++i) {
    std::byte* buffer = (*pipeline)->acquire();
    ASSERT_NE(buffer, nullptr);
    for (u64 page = 0; page < 4; ++page) fill_page(buffer + page * kPageSize, 4 * i + page);
    (*pipeline)->submit({.block = 0, .pages = 4, .runs = {{4 * i, 4}}}, buffer);
  }
  const auto outcome = (*pipeline)->finish();
  ASSERT_TRUE(outcome.ok());
  EXPECT_EQ(outcome->counts.saved, 1200U);
  EXPECT_EQ(object.settled, 300U);
  EXPECT_TRUE(object.unchanged);
}

TEST(CapturePipeline, AFullDiskIsToldAndNobodyHangs) {
  MemoryObject object(16 * kPageSize);
  MemoryObjectWriter writer(object, "0123456789abcdef");
  auto pipeline = CapturePipeline::make(writer, 1, small_options());
  ASSERT_TRUE(pipeline.ok());
  for (u64 i = 0; i < 1000; ++i) {
    std::byte* buffer = (*pipeline)->acquire();
    if (buffer == nullptr) break;
    for (u64 page = 0; page < 4; ++page) fill_page(buffer + page * kPageSize, 4 * i + page);
    (*pipeline)->submit({.block = 0, .pages = 4, .runs = {{4 * i, 4}}}, buffer);
  }
  const auto outcome = (*pipeline)->finish();
  ASSERT_FALSE(outcome.ok());
  EXPECT_EQ(outcome.error().kind(), ErrorKind::kIo);
  EXPECT_NE(outcome.error().message().find("No space left"), std::string::npos);
}

TEST(CapturePipeline, CanBeAbandonedBeforeTheGateOpens) {
  MemoryObject object;
  MemoryObjectWriter writer(object, "0123456789abcdef");
  auto pipeline = CapturePipeline::make(writer, 1, small_options());
  ASSERT_TRUE(pipeline.ok());
  std::byte* buffer = (*pipeline)->acquire();
  std::memset(buffer, 0, 4 * kPageSize);
  (*pipeline)->submit({.block = 0, .pages = 4, .runs = {{0, 4}}}, buffer);
  pipeline->reset();
  EXPECT_LE(object.bytes.size(), kPageSize);
}

TEST(CapturePipeline, WorksAtOnceWhereThePoolWillNotHoldWhatComes) {
  for (const bool much : {true, false}) {
    SCOPED_TRACE(much);
    MemoryObject object;
    MemoryObjectWriter writer(object, "0123456789abcdef");
    auto pipeline = CapturePipeline::make(writer, 1, small_options());
    ASSERT_TRUE(pipeline.ok());
    (*pipeline)->expect(much ? 3 * (*pipeline)->pool_bytes() : (*pipeline)->pool_bytes());
    std::byte* buffer = (*pipeline)->acquire();
    std::memset(buffer, 0, 4 * kPageSize);
    (*pipeline)->submit({.block = 0, .pages = 4, .runs = {{0, 4}}}, buffer);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(much ? 10 : 0);
    do {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    } while ((*pipeline)->done_pages() == 0 && std::chrono::steady_clock::now() < deadline);
    EXPECT_EQ((*pipeline)->done_pages(), much ? 4U : 0U);
    ASSERT_TRUE((*pipeline)->finish().ok());
  }
}

}  // namespace
}  // namespace vmsieve
