// SPDX-License-Identifier: Apache-2.0
#include "unit/capture/live_session.h"

#include <fstream>
#include <string>

#include <gmock/gmock.h>

namespace vmsieve::test {
namespace {

INSTANTIATE_TEST_SUITE_P(Memory, Live, testing::ValuesIn(kKinds),
                         [](const auto& instance) { return std::string(instance.param.label); });

/// Where the kinds that are put together of others have nothing to add.
class LiveSimple : public Live {};
INSTANTIATE_TEST_SUITE_P(Memory, LiveSimple, testing::Values(kKinds[0], kKinds[1]),
                         [](const auto& instance) { return std::string(instance.param.label); });

/// VmFlags uw of proc(5): registered for write protection with a userfaultfd.
bool is_registered(pid_t pid) {
  std::ifstream smaps(fmt::format("/proc/{}/smaps", pid));
  for (std::string line; std::getline(smaps, line);)
    if (line.starts_with("VmFlags:") && line.find(" uw") != std::string::npos) return true;
  return false;
}

// ---- one instant ----

TEST_P(Live, EveryPageIsOfTheInstant) {
  for (int round = 0; round < 2; ++round) {
    Session session(guest());
    START_OR_RETURN(session);
    sleep_up_to(20ms);
    session.instant();
    Store store(static_cast<u32>(GetParam().blocks.size()));
    session.expect_all_of_the_instant(store, 1 + round, some_free_pages());
    EXPECT_TRUE(session.guest.goes_on());
    if (HasFailure()) return;
  }
}

TEST_P(Live, EveryPageIsOfTheInstantThoughWritesWaitForBuffers) {
  for (int round = 0; round < 2; ++round) {
    Session session(guest());
    START_OR_RETURN(session);
    sleep_up_to(5ms);
    session.instant();
    Store store(static_cast<u32>(GetParam().blocks.size()), Store::tiny(), 20us);
    session.expect_all_of_the_instant(store, 3, some_free_pages());
    EXPECT_GT(session.capture->figures().waits, 0U);
    EXPECT_GT(session.capture->figures().longest_wait_ms, 0.0);
    if (HasFailure()) return;
  }
}

TEST_P(Live, WritesBetweenTheInstantAndTheCopyGoThrough) {
  Session session(guest());
  START_OR_RETURN(session);
  session.instant();
  EXPECT_TRUE(session.guest.goes_on());
  EXPECT_TRUE(session.guest.does(Order::kWrite, session.guest.reserved() + 100, 400));
  Store store(static_cast<u32>(GetParam().blocks.size()));
  session.expect_all_of_the_instant(store, 2, some_free_pages());
}

TEST_P(Live, EveryPageIsOfTheInstantWhenMuchWasWrittenBeforeIt) {
  Session session(guest());
  START_OR_RETURN(session);
  EXPECT_TRUE(session.guest.goes_on());
  session.instant();
  EXPECT_GT(session.capture->figures().rewritten_bytes, 0U);
  Store store(static_cast<u32>(GetParam().blocks.size()));
  session.expect_all_of_the_instant(store);
}

TEST_P(LiveSimple, PagesThatAreFirstTouchedBeforeTheInstantAreCaptured) {
  Session session(guest());
  START_OR_RETURN(session);
  const u64 first = session.guest.reserved() + 300;
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, 100));
  session.instant();
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, 50));
  Store store(static_cast<u32>(GetParam().blocks.size()));
  session.expect_all_of_the_instant(store);
}

TEST_P(LiveSimple, PagesThatAreFirstTouchedAfterTheInstantAreZeros) {
  Session session(guest());
  START_OR_RETURN(session);
  ASSERT_TRUE(session.guest.does(Order::kRead, session.guest.reserved(), 20));
  session.instant();
  session.guest.begin(Order::kWrite, session.guest.reserved(), kReserved);
  Store store(static_cast<u32>(GetParam().blocks.size()), Store::tiny());
  session.expect_all_of_the_instant(store);
  EXPECT_TRUE(session.guest.is_done());
}

TEST_P(LiveSimple, PagesThatWereNeverTouchedAreNotReadNorMadeResident) {
  Session session(guest());
  START_OR_RETURN(session);
  const u64 first = session.guest.reserved();
  session.instant();
  EXPECT_TRUE(session.capture->resident(0, first, kReserved).empty());
  Store store(static_cast<u32>(GetParam().blocks.size()));
  session.expect_all_of_the_instant(store);
  EXPECT_TRUE(session.memory->resident_block(0, first, kReserved).empty());
}

TEST_P(LiveSimple, FreePagesAreNotCopied) {
  Session session(guest());
  START_OR_RETURN(session);
  session.instant();
  const std::vector<PfnRange> free = {{Pfn{0}, 500}, {Pfn{700}, 800}};
  const PagePlan plan = session.plan(free);
  EXPECT_EQ(plan.free_pages, 1300U);
  Store store(static_cast<u32>(GetParam().blocks.size()));
  ASSERT_TRUE(session.copy(plan, store));
  const Pages captured = decode(session.guest.layout(), plan, store);
  expect_equal(captured, session.guest, session.truth);
  EXPECT_TRUE(captured[0][499].empty());
  EXPECT_FALSE(captured[0][500].empty());
}

// QEMU's own threads do not stop with the vCPUs. One that writes page after page finds its last write before
// the instant and its next one after it.
TEST_P(Live, AWriteDuringTheFreezeIsBeforeOrAfterTheInstant) {
  for (int round = 0; round < 2; ++round) {
    Session session(guest());
    ASSERT_TRUE(session.guest.does(Order::kWrite, session.guest.reserved(), kReserved));
    START_OR_RETURN(session);
    ASSERT_TRUE(session.guest.stop());
    const std::vector<std::byte> before = session.guest.truth();
    session.guest.begin(Order::kWrite, session.guest.reserved(), kReserved);
    sleep_up_to(1ms);
    const auto frozen = session.capture->freeze();
    ASSERT_TRUE(frozen) << frozen.error().message();
    EXPECT_TRUE(session.guest.is_done());
    const std::vector<std::byte> after = session.guest.truth();
    session.guest.resume();

    const PagePlan plan = session.plan();
    Store store(static_cast<u32>(GetParam().blocks.size()));
    const auto copied = session.copy(plan, store);
    ASSERT_TRUE(copied) << copied.error().message();
    const Pages captured = decode(session.guest.layout(), plan, store);
    bool is_before = false;
    for (u64 page = session.guest.reserved(); page < session.guest.pages(0); ++page) {
      const std::vector<std::byte>& content = captured[0].at(page);
      if (same(content, session.guest.truth_of(before, 0, page))) {
        is_before = true;
        continue;
      }
      EXPECT_FALSE(is_before) << "page " << page << " is newer than one that was written before it";
      // The page under the writer's hand may be torn, as it would be in a guest that stands still.
      const bool is_last = page + 1 == session.guest.pages(0) ||
                           same(captured[0][page + 1], session.guest.truth_of(before, 0, page + 1));
      if (!is_last) {
        EXPECT_TRUE(same(content, session.guest.truth_of(after, 0, page))) << "page " << page;
      }
    }
    if (HasFailure()) return;
  }
}

// Whoever watches this process knows of it before a write can wait for it.
TEST(LiveCapture, BeatsBeforeTheFirstPageIsRegistered) {
  pid_t pid = 0;
  std::vector<bool> registered;
  Session session({.blocks = {{.pages = kMainPages}}, .writers = 0}, {.beat = [&] {
                    if (registered.empty()) registered.push_back(is_registered(pid));
                  }});
  pid = session.guest.pid();
  START_OR_RETURN(session);
  EXPECT_TRUE(is_registered(pid));
  EXPECT_THAT(registered, testing::ElementsAre(false));
}

// What was not written since start() need not be looked at again.
TEST(LiveCapture, TellsWhatWasWrittenSinceItsStart) {
  Session session({.blocks = {{.pages = kMainPages}}, .writers = 0, .reserved_pages = 2 * kReserved});
  START_OR_RETURN(session);
  const u64 first = session.guest.reserved();
  const GuestPhysical written = Pfn{first}.address();
  EXPECT_TRUE(session.capture->is_unwritten(written, kPageSize));
  EXPECT_TRUE(session.capture->is_unwritten(GuestPhysical{0}, kMainPages * kPageSize));
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, 1));
  EXPECT_FALSE(session.capture->is_unwritten(written, kPageSize));
  EXPECT_FALSE(session.capture->is_unwritten(GuestPhysical{0}, kMainPages * kPageSize));
  EXPECT_TRUE(session.capture->is_unwritten(GuestPhysical{0}, kPageSize));
  // What is no RAM, or reaches out of it, was never seen.
  const PhysicalExtent outside{GuestPhysical{kMainPages * kPageSize}, kPageSize};
  EXPECT_FALSE(session.capture->is_unwritten(outside.address, outside.bytes));
  EXPECT_FALSE(session.capture->is_unwritten(GuestPhysical{0}, (kMainPages + 1) * kPageSize));

  const std::vector<PhysicalExtent> extents = {{GuestPhysical{0}, kPageSize}, {written, kPageSize}, outside};
  const auto again = session.capture->protect_again(extents);
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_THAT(*again, testing::ElementsAre(false, true, true));
  EXPECT_TRUE(session.capture->is_unwritten(written, kPageSize));
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, 1));
  EXPECT_FALSE(session.capture->is_unwritten(written, kPageSize));
}

// The guest will write there again, and what is restored brings memory in by the order of the store.
TEST(LiveCapture, CopiesFirstWhereTheGuestWroteLately) {
  constexpr u64 kUnitPages = MemoryUnits::kUnitBytes / kPageSize;
  constexpr u64 kWritten = 2 * kUnitPages;
  Session session({.blocks = {{.pages = kMainPages}}, .writers = 0});
  START_OR_RETURN(session);
  ASSERT_TRUE(session.guest.does(Order::kWrite, kWritten + 30, 1));
  const std::vector<PhysicalExtent> extents = {{Pfn{kWritten}.address(), kPageSize}};
  ASSERT_TRUE(session.capture->protect_again(extents));  // it is remembered all the same
  session.instant();
  CapturePipeline::Options options = Store::roomy();
  options.threads = 1;
  Store store(1, options);
  ASSERT_TRUE(session.copy(session.plan(), store, 1));
  const auto outcome = store.pipeline->finish();
  ASSERT_TRUE(outcome) << outcome.error().message();
  u64 last_of_written = 0;
  u64 first_of_others = ~u64{0};
  for (const PageRun& run : outcome->runs[0]) {
    if (run.kind != RunKind::kData) continue;
    if (run.first_page >= kWritten && run.first_page < kWritten + kUnitPages) {
      last_of_written = std::max<u64>(last_of_written, run.frame);
    } else {
      first_of_others = std::min<u64>(first_of_others, run.frame);
    }
  }
  EXPECT_LT(last_of_written, first_of_others);
  EXPECT_NE(first_of_others, ~u64{0});
}

// What was read after its protection, and was not written since, need not be read again.
TEST_P(Live, WhatIsProtectedAgainAndNotWrittenStaysAsItWasRead) {
  Session session(guest());
  START_OR_RETURN(session);
  constexpr u64 kExtentPages = 64;
  std::vector<PhysicalExtent> extents;
  for (u64 page = 0; page + kExtentPages <= session.guest.pages(0); page += kExtentPages)
    extents.push_back({Pfn{page}.address(), kExtentPages * kPageSize});
  std::vector<std::vector<std::byte>> read(extents.size());
  u64 written = 0;
  u64 kept = 0;
  for (int round = 0; round < 4; ++round) {
    EXPECT_TRUE(session.guest.goes_on());
    const auto again = session.capture->protect_again(extents);
    ASSERT_TRUE(again) << again.error().message();
    written += static_cast<u64>(std::count(again->begin(), again->end(), true));
    for (std::size_t i = 0; i < extents.size(); ++i) {
      read[i].resize(extents[i].bytes);
      ASSERT_TRUE(session.memory->read_block(0, i * kExtentPages * kPageSize, read[i]));
    }
    ASSERT_TRUE(session.guest.stop());
    const std::vector<std::byte> truth = session.guest.truth();
    for (std::size_t i = 0; i < extents.size(); ++i) {
      if (!session.capture->is_unwritten(extents[i].address, extents[i].bytes)) continue;
      for (u64 page = 0; page < kExtentPages; ++page) {
        ++kept;
        EXPECT_TRUE(same(std::span(read[i]).subspan(page * kPageSize, kPageSize),
                         session.guest.truth_of(truth, 0, i * kExtentPages + page)));
      }
      if (HasFailure()) return;
    }
    session.guest.resume();
  }
  EXPECT_GT(written, 0U);
  EXPECT_GT(kept, 0U);
  session.instant();
  Store store(static_cast<u32>(GetParam().blocks.size()));
  session.expect_all_of_the_instant(store, 2, some_free_pages());
}

}  // namespace
}  // namespace vmsieve::test
