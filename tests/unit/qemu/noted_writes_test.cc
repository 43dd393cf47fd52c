// SPDX-License-Identifier: Apache-2.0
// Which writes asynchronous write protection tells of.

#include <signal.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <algorithm>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/qemu/noted_memory.h"
#include "vmsieve/qemu/remote_userfaultfd.h"

namespace vmsieve::test {
namespace {

using testing::IsEmpty;
using Act = NotedMemory::Act;
using Take = Pagemap::Take;
using Pages = std::set<u64>;

constexpr u64 kPages = NotedMemory::kPages;
constexpr u64 kHuge = NotedMemory::kHugePages;
constexpr u64 kTouched = 30;             // a multiple of 3
constexpr u64 kBetween = 31;             // never touched, in the midst of touched ones
constexpr u64 kUntouched = kPages - 40;  // and nothing near it was

class NotedWrites : public testing::TestWithParam<MemoryKind> {
 protected:
  NotedWrites() : noted_(GetParam()) {}

  /// As they are told of: whole huge pages of a hugetlb file.
  static Pages told(const Pages& pages) {
    if (GetParam() != MemoryKind::kHugeTable) return pages;
    Pages huge;
    for (const u64 page : pages) huge.insert(page / kHuge);
    Pages whole;
    for (const u64 one : huge) {
      for (u64 i = 0; i < kHuge; ++i) whole.insert(whole.end(), one * kHuge + i);
    }
    return whole;
  }
  void write_all(const Pages& pages) {
    for (const u64 page : pages) ASSERT_TRUE(noted_.memory.does(Act::kWrite, page));
  }

  Noted noted_;
};

INSTANTIATE_TEST_SUITE_P(Memory, NotedWrites,
                         testing::Values(MemoryKind::kPrivate, MemoryKind::kHuge, MemoryKind::kShared,
                                         MemoryKind::kHugeTable, MemoryKind::kFileShared,
                                         MemoryKind::kFilePrivate),
                         [](const auto& instance) { return to_string(instance.param); });

TEST_P(NotedWrites, NothingIsToldOfWithoutAWrite) {
  START_NOTED(noted_);
  EXPECT_THAT(noted_.written(), IsEmpty());
  EXPECT_THAT(noted_.written(Take::kNo), IsEmpty());
}

// More places than the kernel holds at once, fewer than it is given room for: it then says that it came less
// far than it did, and the rest is looked at twice. What is written between the two looks lies among what the
// first one told of.
TEST_P(NotedWrites, WhatIsWrittenWhileManyPlacesAreToldOfIsNotLost) {
  constexpr u64 kScattered = 1400;  // every second page
  constexpr u64 kFirst = 1041;      // an odd page, behind the first 512 places
  if (GetParam() == MemoryKind::kHugeTable) GTEST_SKIP() << "has few pages";
  START_NOTED(noted_);
  for (int turn = 0; turn < 100; ++turn) {
    ASSERT_TRUE(noted_.memory.does_each(Act::kWrite, 0, kScattered, 2));
    Pages written;
    std::thread writer([&] {
      for (u64 page = kFirst; page < kScattered - 20; page += 6) {
        EXPECT_TRUE(noted_.memory.does(Act::kWrite, page));
        written.insert(page);
      }
    });
    Pages seen = noted_.written();
    seen.merge(noted_.written());
    writer.join();
    seen.merge(noted_.written());
    for (const u64 page : written) ASSERT_TRUE(seen.contains(page)) << "page " << page << ", turn " << turn;
    for (u64 page = 0; page < kScattered; page += 2) ASSERT_TRUE(seen.contains(page)) << page;
  }
}

TEST_P(NotedWrites, EveryWriteIsToldOfOnce) {
  START_NOTED(noted_);
  const Pages pages{0, kTouched, kBetween, kHuge - 1, kHuge, kUntouched, kPages - 1};
  write_all(pages);
  EXPECT_EQ(noted_.written(), told(pages));
  EXPECT_THAT(noted_.written(), IsEmpty());
  for (const u64 page : pages) EXPECT_NE(noted_.memory.word(page), 0U);
}

TEST_P(NotedWrites, LookingTakesNothing) {
  START_NOTED(noted_);
  write_all({kTouched, kUntouched});
  EXPECT_EQ(noted_.written(Take::kNo), told({kTouched, kUntouched}));
  EXPECT_EQ(noted_.written(Take::kNo), told({kTouched, kUntouched}));
  EXPECT_EQ(noted_.written(), told({kTouched, kUntouched}));
}

TEST_P(NotedWrites, PagesThatWereTakenAreNotedAgain) {
  START_NOTED(noted_);
  for (int round = 0; round < 4; ++round) {
    write_all({kTouched, kUntouched});
    EXPECT_EQ(noted_.written(), told({kTouched, kUntouched})) << round;
  }
}

TEST_P(NotedWrites, ReadingIsNotToldOf) {
  START_NOTED(noted_);
  ASSERT_TRUE(noted_.memory.does(Act::kRead, 0, kPages));
  EXPECT_EQ(noted_.memory.word(kUntouched + 1), 0U);
  EXPECT_THAT(noted_.written(), IsEmpty());
  write_all({kTouched, kBetween, kUntouched});
  EXPECT_EQ(noted_.written(), told({kTouched, kBetween, kUntouched}));
}

TEST_P(NotedWrites, RandomWritesAreToldOfExactly) {
  constexpr u64 kSeed = 7;
  SCOPED_TRACE(fmt::format("seed {}", kSeed));
  START_NOTED(noted_);
  std::mt19937_64 random(kSeed);
  for (int round = 0; round < 10; ++round) {
    Pages pages;
    for (u64 runs = random() % 12; runs > 0; --runs) {
      const u64 first = random() % kPages;
      const u64 count = std::min(1 + random() % (random() % 4 == 0 ? 700 : 5), kPages - first);
      ASSERT_TRUE(noted_.memory.does(Act::kWrite, first, count));
      for (u64 i = 0; i < count; ++i) pages.insert(first + i);
    }
    ASSERT_EQ(noted_.written(), told(pages)) << "round " << round;
  }
}

// More runs than the kernel is given room for at once.
TEST_P(NotedWrites, AnyNumberOfRunsIsToldOf) {
  START_NOTED(noted_);
  Pages pages;
  for (u64 page = 0; page < kPages; page += 2) pages.insert(page);
  ASSERT_TRUE(noted_.memory.does_each(Act::kWrite, 0, kPages, 2));
  EXPECT_EQ(noted_.written(Take::kNo), told(pages));
  EXPECT_EQ(noted_.written(), told(pages));
  EXPECT_THAT(noted_.written(), IsEmpty());
}

TEST_P(NotedWrites, OnlyTheRangeThatWasAskedAboutIsTaken) {
  START_NOTED(noted_);
  write_all({kHuge - 1, kHuge, 2 * kHuge - 1, 2 * kHuge});
  const ByteRange range = noted_.memory.range(kHuge, kHuge);
  EXPECT_EQ(noted_.written(range, Take::kYes), told({kHuge, 2 * kHuge - 1}));
  EXPECT_THAT(noted_.written(range, Take::kYes), IsEmpty());
  EXPECT_EQ(noted_.written(), told({kHuge - 1, 2 * kHuge}));
}

TEST_P(NotedWrites, AnEmptyRangeHoldsNothing) {
  START_NOTED(noted_);
  write_all({kHuge});
  EXPECT_THAT(noted_.written(noted_.memory.range(kHuge, 0), Take::kYes), IsEmpty());
  EXPECT_EQ(noted_.written(), told({kHuge}));
}

// ---- who writes ----

TEST_P(NotedWrites, OfTheKernelAreToldOf) {
  START_NOTED(noted_);
  ASSERT_TRUE(noted_.memory.does(Act::kReceive, kTouched));
  ASSERT_TRUE(noted_.memory.does(Act::kReceive, kUntouched, 2));
  EXPECT_EQ(noted_.written(), told({kTouched, kUntouched, kUntouched + 1}));
  EXPECT_EQ(noted_.memory.word(kUntouched), 1U);
}

TEST_P(NotedWrites, OfAnotherProcessAreToldOf) {
  START_NOTED(noted_);
  u64 value = 4711;
  for (const u64 page : {kTouched, kBetween, kUntouched}) {
    const iovec local{&value, sizeof value};
    const iovec remote{reinterpret_cast<void*>(noted_.memory.address(page)), sizeof value};
    ASSERT_EQ(::process_vm_writev(noted_.memory.pid(), &local, 1, &remote, 1, 0),
              static_cast<ssize_t>(sizeof value));
  }
  EXPECT_EQ(noted_.written(), told({kTouched, kBetween, kUntouched}));
  EXPECT_EQ(noted_.memory.word(kUntouched), 4711U);
}

TEST_P(NotedWrites, AfterAForkAreToldOfAsEver) {
  START_NOTED(noted_);
  write_all({kTouched, kUntouched});
  ASSERT_TRUE(noted_.memory.does(Act::kFork));
  EXPECT_EQ(noted_.written(), told({kTouched, kUntouched}));
  write_all({kTouched, kBetween});
  EXPECT_EQ(noted_.written(), told({kTouched, kBetween}));
  EXPECT_EQ(noted_.memory.word(kBetween), noted_.memory.last_word());
}

TEST_P(NotedWrites, OfAProcessThatIsGoneAreNone) {
  START_NOTED(noted_);
  write_all({kTouched});
  ::kill(noted_.memory.pid(), SIGKILL);
  for (int i = 0; i < 5000; ++i) {
    const auto told =
        noted_.pagemap->written(noted_.memory.address(0), noted_.memory.address(kPages), Take::kYes);
    if (!told || told->empty()) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  FAIL() << "its memory is still told of";
}

// ---- what is tracked ----

TEST_P(NotedWrites, WhenTheProtectionGoesTheMemoryIsAsEver) {
  START_NOTED(noted_);
  write_all({kTouched});
  noted_.protection.reset();
  const auto told =
      noted_.pagemap->written(noted_.memory.address(0), noted_.memory.address(kPages), Take::kNo);
  ASSERT_FALSE(told);
  EXPECT_EQ(told.error().kind(), ErrorKind::kUnsupported) << told.error().message();
  write_all({kTouched, kBetween, kUntouched});
  for (const u64 page : {kTouched, kBetween, kUntouched})
    EXPECT_GE(noted_.memory.word(page) + 3, noted_.memory.last_word());
  EXPECT_EQ(noted_.memory.word(kUntouched + 1), 0U);
  const auto left = noted_.pagemap->write_protected(noted_.memory.address(0), noted_.memory.address(kPages));
  ASSERT_TRUE(left) << left.error().message();
  EXPECT_EQ(std::count(left->begin(), left->end(), true), 0);
}

TEST_P(NotedWrites, CanBeNotedAnewAfterTheProtectionHasGone) {
  START_NOTED(noted_);
  write_all({kTouched});
  noted_.protection.reset();
  START_NOTED(noted_);
  EXPECT_THAT(noted_.written(), IsEmpty());
  write_all({kBetween});
  EXPECT_EQ(noted_.written(), told({kBetween}));
}

TEST_P(NotedWrites, MemoryOfWhichAPartIsNotTrackedIsUnsupported) {
  START_NOTED(noted_, {noted_.memory.range(0, kHuge), noted_.memory.range(2 * kHuge, kHuge)});
  write_all({kHuge});
  for (const ByteRange& range : {noted_.memory.all(), noted_.memory.range(0, 2 * kHuge),
                                 noted_.memory.range(kHuge, kHuge), noted_.memory.range(3 * kHuge, kHuge)}) {
    const auto told = noted_.pagemap->written(range.start, range.end, Take::kNo);
    ASSERT_FALSE(told);
    EXPECT_EQ(told.error().kind(), ErrorKind::kUnsupported) << told.error().message();
  }
  write_all({0, 2 * kHuge});
  EXPECT_EQ(noted_.written(noted_.memory.range(0, kHuge), Take::kYes), told({0}));
  EXPECT_EQ(noted_.written(noted_.memory.range(2 * kHuge, kHuge), Take::kYes), told({2 * kHuge}));
}

TEST_P(NotedWrites, MemoryThatWasReplacedIsUnsupported) {
  START_NOTED(noted_);
  ASSERT_TRUE(noted_.memory.does(Act::kReplace, kHuge, kHuge));
  const auto told =
      noted_.pagemap->written(noted_.memory.address(0), noted_.memory.address(kPages), Take::kNo);
  ASSERT_FALSE(told);
  EXPECT_EQ(told.error().kind(), ErrorKind::kUnsupported) << told.error().message();
}

// Unlike what was put there instead; whoever reads it finds out.
TEST_P(NotedWrites, MemoryThatWasUnmappedIsNotToldOf) {
  START_NOTED(noted_);
  write_all({kHuge - 1, kHuge, 2 * kHuge});
  ASSERT_TRUE(noted_.memory.does(Act::kUnmap, kHuge, kHuge));
  EXPECT_EQ(noted_.written(), told({kHuge - 1, 2 * kHuge}));
}

}  // namespace
}  // namespace vmsieve::test
