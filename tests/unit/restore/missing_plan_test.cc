// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/missing_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmsieve {
namespace {

using testing::ElementsAre;

constexpr u64 kRam = 0x7f0000000000;
constexpr u64 kHuge = 0x7f8000000000;

PageRun data(u64 first, u64 pages, u64 frame, u64 in_frame = 0) {
  return {
      .first_page = first, .pages = pages, .kind = RunKind::kData, .frame = frame, .page_in_frame = in_frame};
}
PageRun filled(u64 first, u64 pages, u8 fill, RunKind kind = RunKind::kFill) {
  return {.first_page = first, .pages = pages, .kind = kind, .fill = fill};
}
Frame frame(u32 object, u64 offset, u64 pages) {
  return {.object = object,
          .codec = Codec::kNone,
          .offset = offset,
          .stored_bytes = pages * kPageSize,
          .raw_bytes = pages * kPageSize};
}

/// Frame 0 stands behind frame 1 in the object, and is used by both blocks.
MemoryIndex index() {
  MemoryIndex index;
  index.frames = {frame(0, 0x9000, 4), frame(0, 0x1000, 8), frame(1, 0x1000, 4)};
  index.blocks = {
      {"ram",
       40 * kPageSize,
       {filled(0, 4, 0, RunKind::kFree), data(4, 2, 0), filled(6, 4, 0xaa), data(10, 8, 1), filled(18, 2, 0),
        data(20, 4, 2), filled(24, 16, 0, RunKind::kFree)}},
      {"rom", 2 * kPageSize, {data(0, 2, 0, 2)}},
  };
  return index;
}

RamLayout layout() {
  RamLayout layout;
  layout.blocks = {
      {.name = "rom", .used_bytes = 2 * kPageSize, .host = HostVirtual{0x1000}},
      {.name = "ram", .used_bytes = 40 * kPageSize, .host = HostVirtual{kRam}, .guest_ram = true}};
  return layout;
}

u64 at(u64 page) { return kRam + page * kPageSize; }

TEST(MissingPlan, HasOneJobForEachFrameInTheOrderOfItsBytes) {
  const MissingPlan plan(index(), {true, false}, layout());
  EXPECT_EQ(plan.pages(), 2U + 4 + 8 + 4);
  EXPECT_THAT(plan.ranges(), ElementsAre(ByteRange{at(0), at(40)}));
  ASSERT_EQ(plan.jobs().size(), 4U);
  std::vector<std::optional<u64>> frames;
  for (const MissingJob& job : plan.jobs()) {
    ASSERT_EQ(job.pieces.size(), 1U);
    EXPECT_FALSE(job.huge_page);
    frames.push_back(job.pieces.front().frame);
  }
  EXPECT_THAT(frames, ElementsAre(1U, 0U, 2U, std::nullopt));
  // Of frame 0 only the pages of this block.
  const MissingPiece& piece = plan.jobs()[1].pieces.front();
  EXPECT_EQ(piece.address, at(4));
  EXPECT_EQ(piece.pages, 2U);
  EXPECT_EQ(piece.page_in_frame, 0U);
  EXPECT_EQ(plan.jobs()[3].pieces.front().fill, 0xaa);
}

TEST(MissingPlan, FindsTheJobsOfFramesInTheirOrder) {
  const MissingPlan plan(index(), {true, false}, layout());
  EXPECT_THAT(plan.jobs_of({}), ElementsAre());
  EXPECT_THAT(plan.jobs_of(std::vector<u64>{2, 0, 1}), ElementsAre(2U, 1U, 0U));
  EXPECT_THAT(plan.jobs_of(std::vector<u64>{1, 1, 1}), ElementsAre(0U));
  EXPECT_THAT(plan.jobs_of(std::vector<u64>{7}), ElementsAre());
}

TEST(MissingPlan, FindsWhatBelongsAtAnAddress) {
  const MissingPlan plan(index(), {true, false}, layout());
  EXPECT_FALSE(plan.find(at(0) - 1));
  EXPECT_FALSE(plan.find(at(40)));
  EXPECT_FALSE(plan.find(0x1000));  // not brought in
  EXPECT_EQ(plan.find(at(4))->job, 1U);
  EXPECT_EQ(plan.find(at(6) - 1)->job, 1U);
  EXPECT_EQ(plan.find(at(6))->job, 3U);
  EXPECT_EQ(plan.find(at(17))->job, 0U);
  const auto first = plan.find(at(1));
  EXPECT_EQ(first->job, std::nullopt);
  EXPECT_EQ(first->zeros, (ByteRange{at(0), at(4)}));
  EXPECT_EQ(plan.find(at(19))->zeros, (ByteRange{at(18), at(20)}));
  EXPECT_EQ(plan.find(at(39))->zeros, (ByteRange{at(24), at(40)}));
}

TEST(MissingPlan, CutsLongFills) {
  MemoryIndex index;
  index.blocks = {{"ram", 1000 * kPageSize, {filled(0, 1000, 0x5a, RunKind::kFree)}}};
  RamLayout layout;
  layout.blocks = {{.name = "ram", .used_bytes = 1000 * kPageSize, .host = HostVirtual{kRam}}};
  const MissingPlan plan(index, {true}, layout);
  EXPECT_EQ(plan.pages(), 1000U);
  ASSERT_EQ(plan.jobs().size(), 4U);
  for (const u64 page : {0, 255, 256, 999}) EXPECT_EQ(plan.find(at(page))->job, page / 256) << page;
}

TEST(MissingPlan, PutsHugePagesTogether) {
  MemoryIndex index;
  index.frames = {frame(0, 0x1000, 8)};
  // Four huge pages: the second holds nothing, the third and the fourth share a run.
  index.blocks = {{"huge",
                   2048 * kPageSize,
                   {data(0, 4, 0), filled(4, 6, 7), filled(10, 1526, 0, RunKind::kFree), data(1536, 4, 0, 4),
                    filled(1540, 508, 0)}}};
  RamLayout layout;
  layout.blocks = {{.name = "huge",
                    .used_bytes = 2048 * kPageSize,
                    .host_page_bytes = 2 * kMiB,
                    .host = HostVirtual{kHuge}}};
  const MissingPlan plan(index, {true}, layout);
  ASSERT_EQ(plan.jobs().size(), 2U);
  EXPECT_EQ(plan.jobs()[0].huge_page, (ByteRange{kHuge, kHuge + 2 * kMiB}));
  EXPECT_EQ(plan.jobs()[0].pieces.size(), 2U);
  EXPECT_EQ(plan.jobs()[1].huge_page, (ByteRange{kHuge + 6 * kMiB, kHuge + 8 * kMiB}));
  EXPECT_EQ(plan.find(kHuge + 2 * kMiB - 1)->job, 0U);
  EXPECT_EQ(plan.find(kHuge + 2 * kMiB)->job, std::nullopt);
  EXPECT_EQ(plan.find(kHuge + 2 * kMiB)->zeros, (ByteRange{kHuge + 2 * kMiB, kHuge + 6 * kMiB}));
  EXPECT_EQ(plan.find(kHuge + 7 * kMiB)->job, 1U);
  EXPECT_EQ(plan.find(kHuge)->page_bytes, 2 * kMiB);
}

TEST(MissingPlan, ARunMayReachOverHugePages) {
  MemoryIndex index;
  index.frames = {frame(0, 0x1000, 20)};
  index.blocks = {{"huge", 1024 * kPageSize, {filled(0, 500, 0), data(500, 20, 0), filled(520, 504, 0)}}};
  RamLayout layout;
  layout.blocks = {{.name = "huge",
                    .used_bytes = 1024 * kPageSize,
                    .host_page_bytes = 2 * kMiB,
                    .host = HostVirtual{kHuge}}};
  const MissingPlan plan(index, {true}, layout);
  ASSERT_EQ(plan.jobs().size(), 2U);
  EXPECT_EQ(plan.jobs()[0].pieces.front().pages, 12U);
  EXPECT_EQ(plan.jobs()[1].pieces.front().pages, 8U);
  EXPECT_EQ(plan.jobs()[1].pieces.front().page_in_frame, 12U);
  EXPECT_EQ(plan.jobs()[1].pieces.front().address, kHuge + 2 * kMiB);
}

}  // namespace
}  // namespace vmsieve
