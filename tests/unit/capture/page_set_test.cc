// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/page_set.h"

#include <random>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmsieve {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

/// The same, a page at a time.
struct NaiveSet {
  explicit NaiveSet(u64 pages) : has(pages) {}
  void set(BlockPages run, bool present) {
    for (u64 page = run.first_page; page < has.size() && page - run.first_page < run.pages; ++page)
      has[page] = present;
  }
  std::vector<BlockPages> runs() const {
    std::vector<BlockPages> runs;
    for (u64 page = 0; page < has.size(); ++page) {
      if (!has[page]) continue;
      if (!runs.empty() && runs.back().first_page + runs.back().pages == page) {
        ++runs.back().pages;
      } else {
        runs.push_back({page, 1});
      }
    }
    return runs;
  }
  std::vector<bool> has;
};

void expect_same(const PageSet& set, const NaiveSet& naive) {
  ASSERT_EQ(set.size(), naive.has.size());
  u64 count = 0;
  for (u64 page = 0; page < set.size(); ++page) {
    ASSERT_EQ(set.has(page), naive.has[page]) << "page " << page;
    count += naive.has[page] ? 1 : 0;
  }
  EXPECT_EQ(set.count(), count);
  EXPECT_EQ(set.runs(), naive.runs());
  EXPECT_FALSE(set.has(set.size()));
  EXPECT_FALSE(set.has(~u64{0}));
}

class PageSets : public testing::TestWithParam<u64> {};

TEST_P(PageSets, AreAsAPageAtATime) {
  const u64 pages = GetParam();
  constexpr u64 kSeed = 20;
  SCOPED_TRACE(fmt::format("seed {}", kSeed));
  std::mt19937_64 random(kSeed + pages);
  const auto some_run = [&]() -> BlockPages {
    const u64 most = random() % 2 == 0 ? 3 : pages + 70;
    return {random() % (pages + 3), random() % (most + 1)};
  };
  PageSet set(pages);
  NaiveSet naive(pages);
  PageSet other(pages);
  NaiveSet naive_other(pages);
  for (int step = 0; step < 300; ++step) {
    const BlockPages run = some_run();
    const BlockPages run_of_other = some_run();
    const bool present = random() % 3 != 0;
    present ? set.add(run) : set.remove(run);
    naive.set(run, present);
    other.add(run_of_other);
    naive_other.set(run_of_other, true);
    if (step % 16 == 15) {
      const bool unite = random() % 2 == 0;
      unite ? set.add(other) : set.remove(other);
      for (u64 page = 0; page < pages; ++page) {
        if (naive_other.has[page]) naive.has[page] = unite;
      }
      other = PageSet(pages);
      naive_other = NaiveSet(pages);
    }
    expect_same(set, naive);
    if (HasFatalFailure()) FAIL() << "step " << step;
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, PageSets, testing::Values(0, 1, 2, 63, 64, 65, 127, 128, 129, 200, 700),
                         testing::PrintToStringParamName());

TEST(PageSet, BeginsEmpty) {
  const PageSet set(130);
  EXPECT_EQ(set.count(), 0U);
  EXPECT_THAT(set.runs(), IsEmpty());
  EXPECT_FALSE(set.has(0));
}

TEST(PageSet, OfNoPagesHoldsNone) {
  PageSet set(0);
  set.add({0, 1});
  set.add({0, ~u64{0}});
  set.remove({5, 5});
  EXPECT_FALSE(set.has(0));
  EXPECT_EQ(set.count(), 0U);
  EXPECT_THAT(set.runs(), IsEmpty());
}

TEST(PageSet, WhatLiesBehindItsEndIsLeftOut) {
  PageSet set(70);
  set.add({60, 100});
  EXPECT_THAT(set.runs(), ElementsAre(BlockPages{60, 10}));
  set.add({70, 1});
  set.add({1000, 5});
  set.add({~u64{0}, 1});
  EXPECT_EQ(set.count(), 10U);
  set.remove({65, ~u64{0}});  // whose end is beyond 64 bits
  EXPECT_THAT(set.runs(), ElementsAre(BlockPages{60, 5}));
}

TEST(PageSet, RunsThatAdjoinAreOne) {
  PageSet set(300);
  set.add({0, 64});
  set.add({64, 64});
  set.add({128, 1});
  set.add({130, 170});
  EXPECT_THAT(set.runs(), ElementsAre(BlockPages{0, 129}, BlockPages{130, 170}));
}

TEST(PageSet, AnEmptyRunChangesNothing) {
  PageSet set(100);
  set.add({10, 0});
  EXPECT_EQ(set.count(), 0U);
  set.add({10, 5});
  set.remove({12, 0});
  EXPECT_EQ(set.count(), 5U);
}

}  // namespace
}  // namespace vmsieve
