// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/read_out.h"

#include <unistd.h>

#include "unit/capture/live_session.h"

namespace vmsieve::test {
namespace {

constexpr u64 kPages = 900;  // of each block

/// Two blocks of this very process, which stand still: runs of zeros, of another byte, and of data.
class Still {
 public:
  explicit Still(u64 seed) : random_(seed) {
    for (u32 block = 0; block < 2; ++block) {
      memory_.push_back(*AnonymousMemory::make(kPages * kPageSize));
      for (u64 page = 0; page < kPages;) {
        const u64 end = std::min(kPages, page + 1 + below(below(2) == 0 ? 3 : 90));
        const u64 kind = below(3);
        for (; page < end; ++page) write(block, page, kind);
      }
    }
  }

  RamLayout layout() const {
    RamLayout layout;
    for (u32 block = 0; block < 2; ++block) {
      const u64 bytes = kPages * kPageSize;
      layout.blocks.push_back({block == 0 ? "ram" : "rom", bytes, bytes, kPageSize,
                               HostVirtual{reinterpret_cast<u64>(memory_[block].data())}, block == 0});
      layout.mappings.push_back({GuestPhysical{block * bytes}, bytes, block, 0});
    }
    return layout;
  }
  std::span<const std::byte> page(u32 block, u64 page) const {
    return {memory_[block].data() + page * kPageSize, kPageSize};
  }
  u64 below(u64 limit) { return std::uniform_int_distribution<u64>(0, limit - 1)(random_); }

 private:
  void write(u32 block, u64 page, u64 kind) {
    std::byte* const at = memory_[block].data() + page * kPageSize;
    if (kind == 1) std::memset(at, 0x5a, kPageSize);
    if (kind != 2) return;
    for (u64 i = 0; i < kPageSize; i += sizeof(u64)) {
      const u64 word = below(3) == 0 ? random_() : 0;
      std::memcpy(at + i, &word, sizeof word);
    }
    at[below(kPageSize)] = std::byte{1};
  }

  std::mt19937_64 random_;
  std::vector<AnonymousMemory> memory_;
};

/// Of all pages but some runs that are called free.
PagePlan plan_of(Still& still) {
  PagePlan plan;
  for (u32 block = 0; block < 2; ++block) {
    plan.blocks.emplace_back();
    for (u64 page = 0; page < kPages;) {
      const u64 count = std::min(kPages - page, 1 + still.below(60));
      if (still.below(4) == 0) {
        plan.blocks.back().known.push_back({.first_page = page, .pages = count, .kind = RunKind::kFree});
      } else {
        plan.blocks.back().read.push_back({page, count});
        plan.read_pages += count;
      }
      page += count;
    }
  }
  return plan;
}

void expect_whole(const Still& still, const PagePlan& plan, Store& store) {
  const Pages pages = decode(still.layout(), plan, store);
  for (u32 block = 0; block < 2; ++block) {
    ASSERT_EQ(pages[block].size(), kPages);
    for (const BlockPages& run : plan.blocks[block].read) {
      for (u64 page = run.first_page; page < run.first_page + run.pages; ++page)
        ASSERT_TRUE(same(pages[block][page], still.page(block, page)))
            << "block " << block << " page " << page;
    }
  }
}

TEST(ReadOut, BringsEveryPageWhetherTheBuffersAreTightOrNot) {
  const u64 seed = std::random_device{}();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  for (u64 turn = 0; turn < 24; ++turn) {
    Still still(seed + turn);
    const PagePlan plan = plan_of(still);
    const bool tight = turn % 2 == 0;
    const u64 bytes = plan.read_pages * kPageSize;
    const u64 chunk_pages = turn % 3 == 0 ? 5 : 64;
    Store store(2, {.compression = {.codec = turn % 4 < 2 ? Codec::kNone : Codec::kLz4, .level = 1},
                    .threads = 2,
                    .buffer_bytes = tight ? bytes * 2 / 3 : bytes * 2,
                    .chunk_pages = chunk_pages});
    store.pipeline->expect(bytes);
    ASSERT_EQ(store.pipeline->is_tight(), tight);
    const auto memory = LiveMemory::open(::getpid(), still.layout());
    ASSERT_TRUE(memory) << memory.error().message();
    const auto read = read_out(**memory, *store.pipeline, cut_chunks(plan, chunk_pages),
                               1 + static_cast<unsigned>(turn) % 3, kSilent);
    ASSERT_TRUE(read) << read.error().message();
    expect_whole(still, plan, store);
  }
}

TEST(ReadOut, TightBuffersHoldWhatTheyWouldNotHoldUnsorted) {
  Still still(7);
  PagePlan plan;
  u64 data_pages = 0;
  for (u32 block = 0; block < 2; ++block) {
    plan.blocks.push_back({{}, {{0, kPages}}});
    plan.read_pages += kPages;
    for (u64 page = 0; page < kPages; ++page)
      data_pages += !uniform_byte(still.page(block, page)).has_value();
  }
  constexpr u64 kChunkPages = 16;
  // Room for the data, for what is left of a buffer, and for the buffers that readers and blocks end with.
  const u64 buffers = data_pages / (kChunkPages - 8) + 4;
  ASSERT_LT(buffers * kChunkPages, plan.read_pages);
  MemoryObject object;
  MemoryObjectWriter writer(object, "0123456789abcdef");
  const auto pipeline = CapturePipeline::make(writer, 2,
                                              {.compression = {.codec = Codec::kLz4, .level = 1},
                                               .threads = 1,
                                               .buffer_bytes = buffers * kChunkPages * kPageSize,
                                               .chunk_pages = kChunkPages});
  ASSERT_TRUE(pipeline);
  (*pipeline)->expect(plan.read_pages * kPageSize);
  const auto memory = LiveMemory::open(::getpid(), still.layout());
  ASSERT_TRUE(memory);
  const auto read = read_out(**memory, **pipeline, cut_chunks(plan, kChunkPages), 2, kSilent);
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ((*pipeline)->done_pages(), 0U) << "the gate was opened: a buffer was waited for";
  const auto outcome = (*pipeline)->finish();
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->counts.saved, data_pages);
}

TEST(ReadOut, AFullDiskIsToldByThePipeline) {
  Still still(9);
  const PagePlan plan = plan_of(still);
  Store store(2,
              {.compression = {.codec = Codec::kNone, .level = 0},
               .threads = 1,
               .buffer_bytes = plan.read_pages * kPageSize * 2 / 3,
               .chunk_pages = 16},
              0us, 100 * kPageSize);
  store.pipeline->expect(plan.read_pages * kPageSize);
  const auto memory = LiveMemory::open(::getpid(), still.layout());
  ASSERT_TRUE(memory);
  ASSERT_TRUE(read_out(**memory, *store.pipeline, cut_chunks(plan, 16), 2, kSilent));
  const auto outcome = store.pipeline->finish();
  ASSERT_FALSE(outcome);
  EXPECT_NE(outcome.error().message().find("No space left"), std::string::npos) << outcome.error().message();
}

}  // namespace
}  // namespace vmsieve::test
