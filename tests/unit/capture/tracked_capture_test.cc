// SPDX-License-Identifier: Apache-2.0
// Checkpoints of a guest that writes all the time, each compared with what it held at the instant.

#include <algorithm>
#include <random>
#include <thread>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/capture/tracked_session.h"

namespace vmsieve::test {
namespace {

using namespace std::chrono_literals;
using Order = WritingGuest::Order;
using Plan = TrackedSession::Plan;

constexpr u64 kMainPages = 4096;
constexpr u64 kReserved = 512;

struct TrackedKind {
  const char* label;
  std::vector<WritingGuest::BlockSpec> blocks;
  bool discards = true;  // does what is discarded come to be known?
};

void PrintTo(const TrackedKind& kind, std::ostream* out) { *out << kind.label; }

const TrackedKind kKinds[] = {
    {"private", {{.pages = kMainPages}, {.pages = 701, .pages_off_unit = 7}}},
    {"shared",
     {{.pages = kMainPages, .shared = true}, {.pages = 700, .shared = true, .pages_off_unit = 511}},
     false},
    {"mixed",
     {{.pages = kMainPages + 13},
      {.pages = 5, .pages_off_unit = 510, .bytes_less = 100},
      {.pages = 0},
      {.pages = 801, .shared = true, .pages_off_unit = 100},
      {.pages = 1},
      {.pages = 512, .huge = true}}},
    {"huge", {{.pages = kMainPages, .huge = true}, {.pages = 512, .shared = true, .huge = true}}},
    {"disk",
     {{.pages = kMainPages, .shared = true, .on_disk = true}, {.pages = 300, .on_disk = true}},
     false},
};

class Tracked : public testing::TestWithParam<TrackedKind> {
 protected:
  Tracked()
      : seed_(std::random_device{}()),
        random_(seed_),
        trace_(__FILE__, __LINE__, fmt::format("seed {}", seed_)) {}

  WritingGuest::Options guest() {
    return {
        .blocks = GetParam().blocks, .writers = 2, .reserved_pages = kReserved, .seed = random_() % 100000};
  }
  u64 below(u64 limit) { return std::uniform_int_distribution<u64>(0, limit - 1)(random_); }
  /// Page frames of the first block, its last ones among them.
  std::vector<PfnRange> some_free_pages() {
    const u64 pages = GetParam().blocks[0].pages;
    std::vector<PfnRange> free;
    // Now and then so many at once that they are not asked about.
    constexpr u64 kLengths[] = {10, 600, 3000};
    for (u64 at = below(100); at < pages;) {
      const u64 count = std::min(1 + below(kLengths[below(3)]), pages - at);
      free.push_back({Pfn{at}, count});
      at += count + 1 + below(400);
    }
    return free;
  }

  const u64 seed_;
  std::mt19937_64 random_;
  const testing::ScopedTrace trace_;
};

INSTANTIATE_TEST_SUITE_P(Memory, Tracked, testing::ValuesIn(kKinds),
                         [](const auto& instance) { return std::string(instance.param.label); });

TEST_P(Tracked, EveryCheckpointOfAChainIsOfItsInstant) {
  TrackedSession session(guest());
  TRACK_OR_RETURN(session);
  for (int i = 0; i < 10; ++i) {
    SCOPED_TRACE(fmt::format("checkpoint {}", i));
    Plan plan{.early_free = some_free_pages(), .free = some_free_pages(), .threads = 1 + i % 3U};
    // What was free is in use now and then, though nobody has written to it.
    if (i % 3 == 2) plan.free.clear();
    plan.compared = i % 2 == 1;
    if (i % 4 == 3) {
      plan.buffer_bytes = kPageSize;
      plan.chunk_pages = 7;
    }
    const u64 first = session.guest.reserved() + below(300);
    plan.before_the_stop = [&, first] {
      EXPECT_TRUE(session.guest.does(Order::kWrite, first, 1 + below(100)));
      if (GetParam().discards) {
        EXPECT_TRUE(session.guest.does(Order::kDiscard, first + 10, 1 + below(100)));
      }
    };
    session.save(plan);
    if (HasFailure()) return;
    std::this_thread::sleep_for(std::chrono::microseconds(below(3000)));
  }
  const auto verified = session.base->verify();
  EXPECT_TRUE(verified) << verified.error().message();
  EXPECT_GT(session.base->manifest().ancestors.size(), 1U);
}

/// Where the kinds that are put together of others have nothing to add.
class TrackedBuffers : public Tracked {};
INSTANTIATE_TEST_SUITE_P(Memory, TrackedBuffers, testing::Values(kKinds[0], kKinds[2]),
                         [](const auto& instance) { return std::string(instance.param.label); });

TEST_P(TrackedBuffers, ACheckpointThatBuildsOnNothingIsOfItsInstant) {
  TrackedSession session(guest());
  TRACK_OR_RETURN(session);
  session.save({.free = some_free_pages()});
  session.save({});
  session.save({.free = some_free_pages(), .full = true});
  EXPECT_TRUE(session.base->manifest().ancestors.empty());
  session.save({.free = some_free_pages()});
  session.save({.full = true});
}

TEST_P(TrackedBuffers, ATinyBufferIsEnough) {
  TrackedSession session(guest());
  TRACK_OR_RETURN(session);
  for (int i = 0; i < 3; ++i) {
    SCOPED_TRACE(fmt::format("checkpoint {}", i));
    session.save({.early_free = some_free_pages(),
                  .free = some_free_pages(),
                  .threads = 1 + i % 2U,
                  .buffer_bytes = kPageSize,
                  .chunk_pages = 3,
                  .slowness = 20us});
    if (HasFailure()) return;
  }
}

TEST_P(TrackedBuffers, WritesThatAreFasterThanTheCopyEndUpInThePause) {
  WritingGuest::Options fast = guest();
  fast.writes_at_once = 1000;
  TrackedSession session(fast);
  TRACK_OR_RETURN(session);
  for (int i = 0; i < 2; ++i) {
    SCOPED_TRACE(fmt::format("checkpoint {}", i));
    session.save(
        {.free = some_free_pages(), .buffer_bytes = 16 * kPageSize, .chunk_pages = 4, .slowness = 30us});
    if (HasFailure()) return;
  }
}

TEST_P(TrackedBuffers, ThePauseMayCopyMoreThanTheBuffersHold) {
  TrackedSession session(guest());
  TRACK_OR_RETURN(session);
  for (int i = 0; i < 3; ++i) {
    // All of it seems to be free until the guest is stopped.
    session.save({.early_free = {{Pfn{0}, GetParam().blocks[0].pages}},
                  .threads = 1 + i % 2U,
                  .buffer_bytes = 64 * kPageSize,
                  .chunk_pages = 8});
    if (HasFailure()) return;
  }
}

TEST_P(TrackedBuffers, WhatIsFreeAtTheInstantIsNotSavedThoughItWasCopied) {
  TrackedSession session(guest());
  TRACK_OR_RETURN(session);
  const u64 pages = GetParam().blocks[0].pages;
  session.save({.free = {{Pfn{0}, pages}}});
  EXPECT_EQ(session.counts.free, pages);
  session.save({});
  EXPECT_EQ(session.counts.free, 0U);
  session.save({.early_free = some_free_pages(),
                .free = {{Pfn{0}, pages}},
                .buffer_bytes = kPageSize,
                .chunk_pages = 3});
  EXPECT_EQ(session.counts.free, pages);
  session.save({});
}

// ---- single pages ----

/// A guest that stands still but for what it is told to do.
class TrackedPages : public Tracked {
 protected:
  WritingGuest::Options quiet() {
    WritingGuest::Options options = guest();
    options.writers = 0;
    return options;
  }
};

INSTANTIATE_TEST_SUITE_P(Memory, TrackedPages, testing::Values(kKinds[0], kKinds[4]),
                         [](const auto& instance) { return std::string(instance.param.label); });

TEST_P(TrackedPages, OnlyWhatWasWrittenIsCopied) {
  TrackedSession session(quiet());
  TRACK_OR_RETURN(session);
  session.save({});
  const u64 first = session.guest.reserved();
  session.save({});
  EXPECT_EQ(session.new_frames, 0U);
  ASSERT_TRUE(session.guest.does(Order::kWrite, first + 3, 2));
  ASSERT_TRUE(session.guest.does(Order::kRead, first, 200));
  u64 copied = 0;
  session.begin({}).ok();
  ASSERT_TRUE(session.copy_ahead());
  session.stop();
  ASSERT_TRUE(session.freeze());
  copied = session.capture->figures().copied_pages;
  EXPECT_EQ(copied, 2U);
  ASSERT_TRUE(session.submit());
  session.commit();
  session.compare();
}

TEST_P(TrackedPages, FreePagesOfTheBaseAreCopiedThoughNobodyWroteToThem) {
  TrackedSession session(quiet());
  const u64 first = session.guest.reserved();
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, 100));
  TRACK_OR_RETURN(session);
  ASSERT_TRUE(session.guest.does(Order::kWrite, first + 50, 100));
  session.save({.free = {{Pfn{first}, 200}}});
  session.save({.free = {{Pfn{first}, 20}, {Pfn{first + 60}, 20}}});
  session.save({});
}

TEST_P(TrackedPages, FreePagesAreNotAskedAboutAndAreSeenWhenTheyAreInUse) {
  WritingGuest::Options options = quiet();
  options.reserved_pages = 3000;
  TrackedSession session(options);
  TRACK_OR_RETURN(session);
  session.save({});
  const u64 first = session.guest.reserved();
  const u64 pages = session.guest.pages(0) - first;
  const auto written = [&] {
    const auto pagemap = Pagemap::open(session.guest.pid());
    const ByteRange host = MemoryUnits(session.memory->layout()).block(0);
    return pagemap->written(host.start, host.end, Pagemap::Take::kNo).value();
  };
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, pages));
  session.save({.early_free = {{Pfn{first}, pages}}, .free = {{Pfn{first}, pages}}});
  EXPECT_EQ(session.counts.free, pages);
  EXPECT_FALSE(written().empty()) << "free memory is protected, for nothing";
  // In use now, and some of it written once more: before the look that takes it for free, and behind it.
  ASSERT_TRUE(session.guest.does(Order::kWrite, first + 10, 5));
  session.save({.early_free = {{Pfn{first}, pages}},
                .free = {{Pfn{first + 2000}, 100}},
                .before_the_stop = [&] { ASSERT_TRUE(session.guest.does(Order::kWrite, first + 20, 5)); }});
  EXPECT_TRUE(written().empty());
  session.save({});
}

TEST_P(TrackedPages, PagesThatWereWrittenAndFreedAreFree) {
  TrackedSession session(quiet());
  TRACK_OR_RETURN(session);
  session.save({});
  const u64 first = session.guest.reserved();
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, 50));
  session.save({.free = {{Pfn{first}, 50}}});
  EXPECT_EQ(session.counts.free, 50U);
  session.save({.free = {{Pfn{first + 10}, 5}}});
  EXPECT_EQ(session.counts.free, 5U);
}

TEST_P(TrackedPages, WhatIsWrittenInEveryPhaseIsOfTheInstant) {
  TrackedSession session(quiet());
  TRACK_OR_RETURN(session);
  const u64 first = session.guest.reserved();
  for (const bool tiny : {false, true}) {
    // More than is left to the pause, so that it is copied ahead.
    ASSERT_TRUE(session.guest.does(Order::kWrite, 0, session.guest.pages(0)));
    Plan plan{.full = true};
    if (tiny) plan.buffer_bytes = plan.chunk_pages = 3 * kPageSize / kPageSize;
    ASSERT_TRUE(session.begin(plan));
    ASSERT_TRUE(session.guest.does(Order::kWrite, 0, 300));
    ASSERT_TRUE(session.copy_ahead());
    EXPECT_GT(session.capture->figures().rounds, 0U);
    ASSERT_TRUE(session.guest.does(Order::kWrite, first - 10, 20));
    session.stop();
    ASSERT_TRUE(session.freeze());
    EXPECT_EQ(session.capture->figures().frozen_pages, 20U);
    // After the instant: must not be seen, neither in what was copied ahead nor in what was not.
    ASSERT_TRUE(session.guest.does(Order::kWrite, 0, session.guest.pages(0)));
    ASSERT_TRUE(session.submit());
    session.commit();
    session.compare();
    session.save({});
  }
}

class TrackedDiscards : public TrackedPages {};
INSTANTIATE_TEST_SUITE_P(Memory, TrackedDiscards, testing::Values(kKinds[0], kKinds[3]),
                         [](const auto& instance) { return std::string(instance.param.label); });

TEST_P(TrackedDiscards, PagesThatWereDiscardedAreZeros) {
  TrackedSession session(quiet());
  TRACK_OR_RETURN(session);
  const u64 first = session.guest.reserved();
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, 400));
  session.save({});
  ASSERT_TRUE(session.guest.does(Order::kDiscard, first + 3, 5));
  session.save({});
  ASSERT_TRUE(session.guest.does(Order::kDiscard, first + 100, 100));
  ASSERT_TRUE(session.guest.does(Order::kWrite, first + 150, 10));
  ASSERT_TRUE(session.guest.does(Order::kRead, first + 170, 10));
  session.save({});
  // All page tables of the block with them.
  ASSERT_TRUE(session.guest.does(Order::kDiscard, 0, session.guest.pages(0)));
  session.save({});
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, 7));
  session.save({});
}

TEST_P(TrackedDiscards, PagesThatWereDiscardedBeforeTheFirstCheckpointAreZeros) {
  TrackedSession session(quiet());
  const u64 first = session.guest.reserved();
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, 400));
  TRACK_OR_RETURN(session);
  ASSERT_TRUE(session.guest.does(Order::kDiscard, first + 3, 50));
  ASSERT_TRUE(session.guest.does(Order::kWrite, first + 10, 5));
  session.save(
      {.before_the_stop = [&] { EXPECT_TRUE(session.guest.does(Order::kDiscard, first + 100, 9)); }});
  session.save(
      {.before_the_stop = [&] { EXPECT_TRUE(session.guest.does(Order::kDiscard, first + 102, 90)); }});
}

}  // namespace
}  // namespace vmsieve::test
