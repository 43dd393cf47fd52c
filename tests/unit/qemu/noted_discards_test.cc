// SPDX-License-Identifier: Apache-2.0
// What asynchronous write protection tells of memory that is taken away, moved or kept by the kernel.

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <set>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/qemu/noted_memory.h"

namespace vmsieve::test {
namespace {

using testing::IsEmpty;
using Act = NotedMemory::Act;
using Take = Pagemap::Take;
using Pages = std::set<u64>;

constexpr u64 kPages = NotedMemory::kPages;
constexpr u64 kHuge = NotedMemory::kHugePages;
constexpr u64 kTouched = 30;

Pages run(u64 first, u64 count) {
  Pages pages;
  for (u64 i = 0; i < count; ++i) pages.insert(first + i);
  return pages;
}

std::string name_of(const testing::TestParamInfo<MemoryKind>& instance) { return to_string(instance.param); }

class NotedDiscards : public testing::TestWithParam<MemoryKind> {
 protected:
  NotedDiscards() : noted_(GetParam()) {}
  Noted noted_;
};

INSTANTIATE_TEST_SUITE_P(Memory, NotedDiscards, testing::Values(MemoryKind::kPrivate, MemoryKind::kHuge),
                         name_of);

TEST_P(NotedDiscards, ADiscardedPageIsToldOfOnce) {
  START_NOTED(noted_);
  ASSERT_NE(noted_.memory.word(kTouched), 0U);
  ASSERT_TRUE(noted_.memory.does(Act::kDiscard, kTouched));
  EXPECT_EQ(noted_.written(Take::kNo), Pages{kTouched});
  EXPECT_EQ(noted_.written(), Pages{kTouched});
  EXPECT_THAT(noted_.written(), IsEmpty());
  EXPECT_EQ(noted_.memory.word(kTouched), 0U);
}

TEST_P(NotedDiscards, AWriteAfterADiscardedPageWasTakenIsToldOf) {
  START_NOTED(noted_);
  ASSERT_TRUE(noted_.memory.does(Act::kDiscard, kTouched));
  EXPECT_EQ(noted_.written(), Pages{kTouched});
  ASSERT_TRUE(noted_.memory.does(Act::kWrite, kTouched));
  EXPECT_EQ(noted_.written(), Pages{kTouched});
}

TEST_P(NotedDiscards, APageThatIsDiscardedAndWrittenIsToldOf) {
  START_NOTED(noted_);
  ASSERT_TRUE(noted_.memory.does(Act::kDiscard, kTouched, 2));
  ASSERT_TRUE(noted_.memory.does(Act::kWrite, kTouched));
  EXPECT_EQ(noted_.written(), run(kTouched, 2));
  EXPECT_THAT(noted_.written(), IsEmpty());
}

TEST_P(NotedDiscards, APageThatIsDiscardedAndReadIsToldOf) {
  START_NOTED(noted_);
  ASSERT_TRUE(noted_.memory.does(Act::kDiscard, kTouched));
  ASSERT_TRUE(noted_.memory.does(Act::kRead, kTouched));
  EXPECT_EQ(noted_.written(), Pages{kTouched});
  EXPECT_THAT(noted_.written(), IsEmpty());
}

TEST_P(NotedDiscards, AWrittenPageThatIsDiscardedIsToldOf) {
  START_NOTED(noted_);
  ASSERT_TRUE(noted_.memory.does(Act::kWrite, kTouched, 3));
  ASSERT_TRUE(noted_.memory.does(Act::kDiscard, kTouched + 1));
  EXPECT_EQ(noted_.written(), run(kTouched, 3));
}

TEST_P(NotedDiscards, AWholeHugePageIsToldOf) {
  START_NOTED(noted_);
  ASSERT_TRUE(noted_.memory.does(Act::kWrite, 2 * kHuge, kHuge));
  EXPECT_EQ(noted_.written(), run(2 * kHuge, kHuge));
  ASSERT_TRUE(noted_.memory.does(Act::kDiscard, 2 * kHuge, kHuge));
  EXPECT_EQ(noted_.written(Take::kNo), run(2 * kHuge, kHuge));
  EXPECT_EQ(noted_.written(), run(2 * kHuge, kHuge));
  EXPECT_THAT(noted_.written(), IsEmpty());
  ASSERT_TRUE(noted_.memory.does(Act::kWrite, 2 * kHuge + 7));
  EXPECT_EQ(noted_.written(), Pages{2 * kHuge + 7});
}

// Which reading brings: a huge page of zeros, where there are such, to be cut by the first write.
TEST_P(NotedDiscards, AHugePageOfZerosIsNotedAPageAtATime) {
  START_NOTED(noted_);
  ASSERT_TRUE(noted_.memory.does(Act::kDiscard, 2 * kHuge, kHuge));
  ASSERT_TRUE(noted_.memory.does(Act::kRead, 2 * kHuge + 3));
  EXPECT_EQ(noted_.written(), run(2 * kHuge, kHuge));
  EXPECT_THAT(noted_.written(), IsEmpty());
  ASSERT_TRUE(noted_.memory.does(Act::kWrite, 2 * kHuge + 9));
  EXPECT_EQ(noted_.written(), Pages{2 * kHuge + 9});
  EXPECT_EQ(noted_.memory.word(2 * kHuge + 10), 0U);
}

TEST_P(NotedDiscards, AllPagesAreToldOf) {
  START_NOTED(noted_);
  ASSERT_TRUE(noted_.memory.does(Act::kDiscard, 0, kPages));
  EXPECT_EQ(noted_.written(Take::kNo), run(0, kPages));
  EXPECT_EQ(noted_.written(), run(0, kPages));
  EXPECT_THAT(noted_.written(), IsEmpty());
  ASSERT_TRUE(noted_.memory.does(Act::kWrite, kPages - 1));
  EXPECT_EQ(noted_.written(), Pages{kPages - 1});
}

TEST_P(NotedDiscards, APartOfWhatWasDiscardedIsTaken) {
  START_NOTED(noted_);
  ASSERT_TRUE(noted_.memory.does(Act::kDiscard, 0, kPages));
  EXPECT_EQ(noted_.written(noted_.memory.range(kHuge + 100, kHuge), Take::kYes), run(kHuge + 100, kHuge));
  Pages rest = run(0, kHuge + 100);
  rest.merge(run(2 * kHuge + 100, kPages - 2 * kHuge - 100));
  EXPECT_EQ(noted_.written(), rest);
}

// ---- memory in a file ----

// The content goes and the protection stays behind, as when a page is swapped out (PTE markers): so a machine
// that takes memory away cannot be tracked (live_support.cc). Where a kernel learns to tell of it, these
// tests fail.
void expect_not_told_of(MemoryKind kind, Act act) {
  SCOPED_TRACE(to_string(kind));
  Noted noted(kind);
  START_NOTED(noted);
  const u64 page = kind == MemoryKind::kHugeTable ? kHuge : kTouched;
  const u64 pages = kind == MemoryKind::kHugeTable ? kHuge : 1;
  ASSERT_TRUE(noted.memory.does(Act::kWrite, page, pages));
  EXPECT_EQ(noted.written(), run(page, pages));
  ASSERT_TRUE(noted.memory.does(act, page, pages));
  EXPECT_EQ(noted.memory.word(page), 0U);
  EXPECT_THAT(noted.written(), IsEmpty());
  // But writes to it are.
  ASSERT_TRUE(noted.memory.does(Act::kWrite, page));
  EXPECT_EQ(noted.written(), run(page, pages));
}

TEST(NotedHoles, OfAMemfdAreNotToldOf) { expect_not_told_of(MemoryKind::kShared, Act::kPunch); }
TEST(NotedHoles, OfAFileOnADiskAreNotToldOf) { expect_not_told_of(MemoryKind::kFileShared, Act::kPunch); }
TEST(NotedHoles, OfAFileOfHugePagesAreNotToldOf) { expect_not_told_of(MemoryKind::kHugeTable, Act::kPunch); }
TEST(NotedHoles, OfAFileThatIsCopiedOnWriteAreNotToldOf) {
  expect_not_told_of(MemoryKind::kFilePrivate, Act::kDiscard);
}

TEST(NotedHoles, DroppingTheMappingOfAFileChangesNothing) {
  for (const MemoryKind kind : {MemoryKind::kShared, MemoryKind::kFileShared}) {
    SCOPED_TRACE(to_string(kind));
    Noted noted(kind);
    START_NOTED(noted);
    const u64 before = noted.memory.word(kTouched);
    ASSERT_TRUE(noted.memory.does(Act::kWrite, kHuge));
    ASSERT_TRUE(noted.memory.does(Act::kDiscard, 0, kPages));
    EXPECT_EQ(noted.memory.word(kTouched), before);
    const Pages told = noted.written();
    EXPECT_EQ(told.count(kHuge), 1U);  // others may be told of though nothing happened to them
    ASSERT_TRUE(noted.memory.does(Act::kWrite, kTouched));
    EXPECT_EQ(noted.written().count(kTouched), 1U);
  }
}

// ---- memory that the kernel moves ----

class NotedReclaim : public NotedDiscards {};
INSTANTIATE_TEST_SUITE_P(Memory, NotedReclaim,
                         testing::Values(MemoryKind::kPrivate, MemoryKind::kHuge, MemoryKind::kShared,
                                         MemoryKind::kFileShared, MemoryKind::kFilePrivate),
                         name_of);

bool has_swap() {
  const auto text = read_text_file("/proc/swaps", kMiB);
  return text && std::count(text->begin(), text->end(), '\n') > 1;
}

TEST_P(NotedReclaim, WhatIsPagedOutStaysNoted) {
  if (GetParam() != MemoryKind::kFileShared && !has_swap()) GTEST_SKIP() << "no swap space";
  START_NOTED(noted_);
  ASSERT_TRUE(noted_.memory.does(Act::kWrite, kTouched));
  ASSERT_TRUE(noted_.memory.does(Act::kWrite, kPages - 5));
  const Pages expected{kTouched, kPages - 5};
  ASSERT_TRUE(noted_.memory.does(Act::kPageOut, 0, kPages));
  EXPECT_EQ(noted_.written(Take::kNo), expected);
  EXPECT_EQ(noted_.written(), expected);
  EXPECT_THAT(noted_.written(), IsEmpty());
  ASSERT_TRUE(noted_.memory.does(Act::kPageOut, 0, kPages));
  EXPECT_THAT(noted_.written(), IsEmpty());
  EXPECT_EQ(noted_.memory.word(kPages - 5), noted_.memory.last_word());  // brings it back
  EXPECT_THAT(noted_.written(), IsEmpty());
  ASSERT_TRUE(noted_.memory.does(Act::kWrite, 33));
  EXPECT_EQ(noted_.written(), Pages{33});
}

TEST_P(NotedReclaim, ACollapseIntoHugePagesLosesNothing) {
  START_NOTED(noted_);
  ASSERT_TRUE(noted_.memory.does(Act::kWrite, kTouched));
  ASSERT_TRUE(noted_.memory.does(Act::kWrite, kHuge, kHuge));
  (void)noted_.memory.does(Act::kCollapse, 0, kPages);  // not every kernel can, or wants to
  Pages expected = run(kHuge, kHuge);
  expected.insert(kTouched);
  const Pages told = noted_.written();
  EXPECT_TRUE(std::includes(told.begin(), told.end(), expected.begin(), expected.end()));
  (void)noted_.memory.does(Act::kCollapse, 0, kPages);
  ASSERT_TRUE(noted_.memory.does(Act::kWrite, kHuge + 1));
  EXPECT_EQ(noted_.written().count(kHuge + 1), 1U);
}

// ---- memory that the kernel keeps ----

// The kernel looks for the page, and so takes its protection away, when it takes hold of it, not when it
// writes: so with direct I/O (O_DIRECT) a disk may write to a page after its write was noted and taken.
// Whoever copies a page that he took while requests were under way must copy it again when they are done.
TEST(NotedPins, AreToldOfWhenThePageIsTakenHoldOfNotWhenItIsWritten) {
  for (const MemoryKind kind : {MemoryKind::kPrivate, MemoryKind::kHuge, MemoryKind::kShared}) {
    SCOPED_TRACE(to_string(kind));
    Noted noted(kind);
    START_NOTED(noted);
    if (!noted.memory.does(Act::kPin, kTouched, 2)) GTEST_SKIP() << "io_uring cannot be had";
    EXPECT_EQ(noted.written(), run(kTouched, 2));
    ASSERT_TRUE(noted.memory.does(Act::kReceivePinned, kTouched, 2));
    EXPECT_EQ(noted.memory.word(kTouched + 1), 0x0101010101010101U);
    EXPECT_THAT(noted.written(), IsEmpty());
  }
}

// ---- while it is written ----

/// Takes what was written, and reads it, while `act` goes on in another thread: at the end what was read last
/// must be what is there.
void expect_nothing_is_missed(Noted& noted, Act discard) {
  std::atomic<bool> done = false;
  std::atomic<u64> rounds = 0;
  std::vector<u64> read(kPages);
  for (u64 page = 0; page < kPages; ++page) read[page] = noted.memory.word(page);
  std::thread busy([&] {
    for (u64 i = 0; i < 800 || rounds <= 10; ++i) {
      const u64 first = i * 997 % (kPages - 40);
      const bool takes_away = discard != Act::kNone && i % 3 == 0;
      EXPECT_TRUE(noted.memory.does(takes_away ? discard : Act::kWrite, first, 1 + i % 40));
    }
    done = true;
  });
  for (bool last = false; !last; ++rounds) {
    last = done;
    for (const u64 page : noted.written()) read[page] = noted.memory.word(page);
  }
  busy.join();
  for (u64 page = 0; page < kPages; ++page) ASSERT_EQ(read[page], noted.memory.word(page)) << "page " << page;
}

TEST_P(NotedReclaim, NoWriteIsMissedWhileOthersAreTaken) {
  START_NOTED(noted_);
  expect_nothing_is_missed(noted_, Act::kNone);
}

TEST_P(NotedDiscards, NoneIsMissedWhileOthersAreTaken) {
  START_NOTED(noted_);
  expect_nothing_is_missed(noted_, Act::kDiscard);
}

}  // namespace
}  // namespace vmsieve::test
