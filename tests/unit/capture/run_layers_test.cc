// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/run_layers.h"

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmsieve {

void PrintTo(const PageRun& run, std::ostream* out) {
  *out << fmt::format("[{}+{} kind {} fill {} frame {}/{}]", run.first_page, run.pages,
                      static_cast<int>(run.kind), run.fill, run.frame, run.page_in_frame);
}

namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::IsEmpty;

PageRun fill(u64 first, u64 pages, u8 byte = 0) {
  return {.first_page = first, .pages = pages, .kind = RunKind::kFill, .fill = byte};
}
PageRun free_run(u64 first, u64 pages, u8 byte = 0) {
  return {.first_page = first, .pages = pages, .kind = RunKind::kFree, .fill = byte};
}
PageRun data(u64 first, u64 pages, u64 frame, u64 page_in_frame = 0) {
  return {.first_page = first,
          .pages = pages,
          .kind = RunKind::kData,
          .frame = frame,
          .page_in_frame = page_in_frame};
}

using Runs = std::vector<PageRun>;

// ---- one over the other ----

TEST(LayOver, NothingOverNothingIsNothing) { EXPECT_THAT(lay_over(Runs{}, Runs{}), IsEmpty()); }

TEST(LayOver, NothingOverSomethingLeavesIt) {
  const Runs below{data(0, 5, 1, 2), fill(5, 1)};
  EXPECT_THAT(lay_over(below, Runs{}), ElementsAreArray(below));
  EXPECT_THAT(lay_over(Runs{}, below), ElementsAreArray(below));
}

TEST(LayOver, ARunThatIsCoveredWholeIsGone) {
  EXPECT_THAT(lay_over(Runs{data(3, 4, 1)}, Runs{fill(3, 4)}), ElementsAre(fill(3, 4)));
  EXPECT_THAT(lay_over(Runs{data(3, 4, 1)}, Runs{fill(2, 6)}), ElementsAre(fill(2, 6)));
  EXPECT_THAT(lay_over(Runs{data(0, 1, 0), data(1, 1, 1), data(2, 1, 2)}, Runs{fill(1, 1)}),
              ElementsAre(data(0, 1, 0), fill(1, 1), data(2, 1, 2)));
}

TEST(LayOver, ARunIsCutAtItsBeginning) {
  EXPECT_THAT(lay_over(Runs{data(10, 10, 7, 3)}, Runs{fill(5, 8)}),
              ElementsAre(fill(5, 8), data(13, 7, 7, 6)));
}

TEST(LayOver, ARunIsCutAtItsEnd) {
  EXPECT_THAT(lay_over(Runs{data(10, 10, 7, 3)}, Runs{fill(18, 8)}),
              ElementsAre(data(10, 8, 7, 3), fill(18, 8)));
}

TEST(LayOver, ARunIsCutAtBothEndsAndInTheMiddle) {
  EXPECT_THAT(lay_over(Runs{data(10, 10, 7, 3)}, Runs{fill(8, 3), fill(14, 2), fill(19, 4)}),
              ElementsAre(fill(8, 3), data(11, 3, 7, 4), fill(14, 2), data(16, 3, 7, 9), fill(19, 4)));
}

TEST(LayOver, ARunSpansSeveral) {
  const Runs below{data(0, 4, 1), data(4, 4, 2), fill(8, 4), data(12, 4, 3, 5)};
  EXPECT_THAT(lay_over(below, Runs{data(2, 12, 9)}),
              ElementsAre(data(0, 2, 1), data(2, 12, 9), data(14, 2, 3, 7)));
}

TEST(LayOver, ARunEndsInAGapBelow) {
  const Runs below{data(0, 4, 1), data(20, 4, 2)};
  EXPECT_THAT(lay_over(below, Runs{fill(2, 10)}), ElementsAre(data(0, 2, 1), fill(2, 10), data(20, 4, 2)));
  EXPECT_THAT(lay_over(below, Runs{fill(2, 18)}), ElementsAre(data(0, 2, 1), fill(2, 18), data(20, 4, 2)));
}

TEST(LayOver, RunsBehindTheLastAreAppended) {
  EXPECT_THAT(lay_over(Runs{fill(0, 4)}, Runs{fill(4, 1, 1), fill(9, 2, 2)}),
              ElementsAre(fill(0, 4), fill(4, 1, 1), fill(9, 2, 2)));
}

TEST(LayOver, OnlyDataHasAPlaceInAFrame) {
  EXPECT_THAT(lay_over(Runs{fill(0, 9, 0xaa)}, Runs{free_run(3, 2)}),
              ElementsAre(fill(0, 3, 0xaa), free_run(3, 2), fill(5, 4, 0xaa)));
}

// ---- joined ----

TEST(Joined, EqualFillsThatAdjoinAreOne) {
  EXPECT_THAT(
      joined(Runs{fill(0, 2), fill(2, 3), fill(6, 1), free_run(7, 2), free_run(9, 2), free_run(11, 1, 1)}),
      ElementsAre(fill(0, 5), fill(6, 1), free_run(7, 4), free_run(11, 1, 1)));
}

TEST(Joined, DataThatAdjoinsInTheSameFrameIsOne) {
  EXPECT_THAT(joined(Runs{data(0, 2, 1, 4), data(2, 2, 1, 6), data(4, 1, 2, 8)}),
              ElementsAre(data(0, 4, 1, 4), data(4, 1, 2, 8)));
}

TEST(Joined, DataThatDoesNotAdjoinInTheFrameStaysApart) {
  const Runs runs{data(0, 2, 1, 4), data(2, 2, 1, 7), data(4, 1, 1, 0), data(6, 1, 1, 1)};
  EXPECT_THAT(joined(runs), ElementsAreArray(runs));
}

TEST(Joined, KindsStayApart) {
  const Runs runs{fill(0, 2), free_run(2, 2), fill(4, 2), data(6, 1, 0)};
  EXPECT_THAT(joined(runs), ElementsAreArray(runs));
}

TEST(Joined, OfNothingIsNothing) { EXPECT_THAT(joined(Runs{}), IsEmpty()); }

// ---- against a page at a time ----

/// What each page holds: a run of one page.
std::map<u64, PageRun> by_page(const Runs& runs) {
  std::map<u64, PageRun> pages;
  for (const PageRun& run : runs) {
    for (u64 i = 0; i < run.pages; ++i) {
      PageRun page = run;
      page.first_page += i;
      page.pages = 1;
      if (run.kind == RunKind::kData) page.page_in_frame += i;
      EXPECT_TRUE(pages.emplace(page.first_page, page).second)
          << "page " << page.first_page << " is there twice";
    }
  }
  return pages;
}

/// Few frames and fills, so that neighbours often can be joined.
Runs some_runs(std::mt19937_64& random, u64 pages, u64 longest) {
  Runs runs;
  for (u64 at = random() % 4; at < pages;) {
    const u64 count = std::min(1 + random() % longest, pages - at);
    switch (random() % 4) {
      case 0: runs.push_back(fill(at, count, static_cast<u8>(random() % 2))); break;
      case 1: runs.push_back(free_run(at, count, static_cast<u8>(random() % 2))); break;
      case 2: runs.push_back(data(at, count, random() % 3, at)); break;  // adjoins whoever has the frame too
      default: runs.push_back(data(at, count, random() % 3, random() % 100)); break;
    }
    at += count + (random() % 2 == 0 ? 0 : random() % longest);
  }
  return runs;
}

void expect_ascending(const Runs& runs) {
  for (std::size_t i = 0; i < runs.size(); ++i) {
    ASSERT_GT(runs[i].pages, 0U);
    if (i > 0) {
      ASSERT_GE(runs[i].first_page, runs[i - 1].first_page + runs[i - 1].pages) << "run " << i;
    }
  }
}

TEST(RunLayers, AreAsAPageAtATime) {
  for (u64 seed = 1; seed <= 400; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937_64 random(seed);
    const u64 pages = random() % 150;
    const Runs below = some_runs(random, pages, 1 + random() % 20);
    Runs above = some_runs(random, pages + random() % 20, 1 + random() % 20);
    auto expected = by_page(below);
    for (const auto& [page, run] : by_page(above)) expected[page] = run;

    std::shuffle(above.begin(), above.end(), random);
    sort_runs(above);
    const Runs laid = lay_over(below, above);
    expect_ascending(laid);
    EXPECT_EQ(by_page(laid), expected);

    const Runs less = joined(laid);
    expect_ascending(less);
    EXPECT_EQ(by_page(less), expected);
    EXPECT_LE(less.size(), laid.size());
    EXPECT_EQ(joined(less), less);
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace vmsieve
