// SPDX-License-Identifier: Apache-2.0
// What becomes of a tracked capture that is disturbed, and what is said of one that is not.

#include <atomic>
#include <thread>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "unit/capture/tracked_session.h"

namespace vmsieve::test {
namespace {

using namespace std::chrono_literals;
using Order = WritingGuest::Order;
using Plan = TrackedSession::Plan;

constexpr u64 kPages = 2048;
constexpr u64 kReserved = 512;

WritingGuest::Options guest(unsigned writers = 2) {
  return {.blocks = {{.pages = kPages}, {.pages = 700, .shared = true, .pages_off_unit = 3}},
          .writers = writers,
          .reserved_pages = kReserved,
          .seed = 5};
}

TEST(TrackedCapture, GuestThatDiesBeforeTheCopyHasVanished) {
  TrackedSession session(guest());
  TRACK_OR_RETURN(session);
  ASSERT_TRUE(session.begin({}));
  session.guest.kill();
  auto result = session.copy_ahead();
  if (result) result = session.freeze();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind(), ErrorKind::kVanished) << result.error().message();
}

TEST(TrackedCapture, GuestThatDiesBeforeTheInstantHasVanished) {
  TrackedSession session(guest());
  TRACK_OR_RETURN(session);
  ASSERT_TRUE(session.begin({}));
  ASSERT_TRUE(session.copy_ahead());
  session.guest.kill();
  const auto result = session.freeze();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind(), ErrorKind::kVanished) << result.error().message();
}

TEST(TrackedCapture, WhenTheTrackingEndsTheCaptureFails) {
  TrackedSession session(guest());
  TRACK_OR_RETURN(session);
  session.save({});
  ASSERT_TRUE(session.begin({}));
  ASSERT_TRUE(session.copy_ahead());
  session.protection.reset();
  const auto frozen = session.freeze();
  ASSERT_FALSE(frozen);
  EXPECT_EQ(frozen.error().kind(), ErrorKind::kUnsupported) << frozen.error().message();
  EXPECT_TRUE(session.guest.goes_on());
}

TEST(TrackedCapture, AfterOneThatWasAbandonedAFullOneIsRight) {
  TrackedSession session(guest());
  TRACK_OR_RETURN(session);
  session.save({});
  ASSERT_TRUE(session.begin({}));
  ASSERT_TRUE(session.copy_ahead());
  session.abandon();
  session.save({.full = true});
  session.save({});
}

TEST(TrackedCapture, CanBeginAnewAfterTheTrackingHasEnded) {
  TrackedSession session(guest());
  TRACK_OR_RETURN(session);
  session.save({});
  session.protection.reset();
  EXPECT_TRUE(session.guest.goes_on());
  TRACK_OR_RETURN(session);
  session.save({});
  session.save({});
}

// The buffers are kept until the instant, or are on their way: an error must come, not a hang.
TEST(TrackedCapture, AFullDiskIsAnErrorInEveryPhase) {
  for (const bool early : {true, false}) {
    TrackedSession session(guest());
    TRACK_OR_RETURN(session);
    Plan plan{.buffer_bytes = 64 * kPageSize, .chunk_pages = 8, .fails_after = early ? 10 * kPageSize : 0};
    plan.fails_from_the_stop_on = !early;
    if (!early) plan.early_free = {{Pfn{0}, kPages}};
    ASSERT_TRUE(session.begin(plan));
    Result<void> result = session.copy_ahead();
    if (result) {
      session.stop();
      result = session.freeze();
      session.guest.resume();
    }
    if (result) result = session.submit();
    const auto outcome = session.finish();
    ASSERT_FALSE(outcome) << early;
    EXPECT_NE(outcome.error().message().find("No space left"), std::string::npos)
        << outcome.error().message();
    EXPECT_TRUE(session.guest.goes_on());
  }
}

TEST(TrackedCapture, TellsOfItsProgressFromOneThreadAtATime) {
  TrackedSession session(guest());
  TRACK_OR_RETURN(session);
  std::atomic<int> inside = 0;
  std::atomic<int> calls = 0;
  std::atomic<u64> last = 0;
  std::atomic<u64> end = 0;
  Plan plan{.threads = 4, .chunk_pages = 4};
  plan.progress = [&](const Progress& now) {
    EXPECT_EQ(++inside, 1);
    EXPECT_LE(now.done_bytes, now.total_bytes);
    if (now.total_bytes == end) {
      EXPECT_GE(now.done_bytes, last);  // another round begins anew
    }
    std::this_thread::sleep_for(1us);
    last = now.done_bytes;
    end = now.total_bytes;
    ++calls;
    --inside;
  };
  session.save(plan);
  EXPECT_GT(calls, 1);
}

TEST(TrackedCapture, KnowsWhatWasNotWrittenSinceTheCopy) {
  TrackedSession session(guest(0));
  TRACK_OR_RETURN(session);
  ASSERT_TRUE(session.begin({}));
  ASSERT_TRUE(session.copy_ahead());
  const u64 page = session.guest.reserved() + 20;
  const auto unwritten = [&](u64 first, u64 bytes) {
    return session.capture->is_unwritten(GuestPhysical{first}, bytes);
  };
  EXPECT_TRUE(unwritten(0, kPages * kPageSize));
  ASSERT_TRUE(session.guest.does(Order::kWrite, page, 1));
  EXPECT_FALSE(unwritten(0, kPages * kPageSize));
  EXPECT_FALSE(unwritten(page * kPageSize, 1));
  EXPECT_FALSE(unwritten(page * kPageSize - 1, 2));
  EXPECT_FALSE(unwritten(page * kPageSize + kPageSize - 1, 2));
  EXPECT_TRUE(unwritten(page * kPageSize - 1, 1));
  EXPECT_TRUE(unwritten((page + 1) * kPageSize, 3 * kPageSize));
  EXPECT_TRUE(unwritten(0, page * kPageSize));
  // The second block is mapped at 1 GiB; between them is nothing.
  EXPECT_TRUE(unwritten(kGiB + 5, 699 * kPageSize));
  EXPECT_FALSE(unwritten(kGiB, 701 * kPageSize));
  EXPECT_FALSE(unwritten(kPages * kPageSize, 1));
  EXPECT_FALSE(unwritten(kPages * kPageSize - 1, 2));
  EXPECT_FALSE(unwritten(0, 0));
  EXPECT_FALSE(unwritten(~u64{0}, 1));
  // Asking takes nothing.
  session.stop();
  ASSERT_TRUE(session.freeze());
  ASSERT_TRUE(session.submit());
  session.commit();
  session.compare();
}

TEST(TrackedCapture, DiscardedMemoryIsNotUnwritten) {
  TrackedSession session(guest(0));
  const u64 page = session.guest.reserved();
  ASSERT_TRUE(session.guest.does(Order::kWrite, page, 10));
  TRACK_OR_RETURN(session);
  ASSERT_TRUE(session.begin({}));
  ASSERT_TRUE(session.copy_ahead());
  EXPECT_TRUE(session.capture->is_unwritten(GuestPhysical{page * kPageSize}, 10 * kPageSize));
  ASSERT_TRUE(session.guest.does(Order::kDiscard, page + 4, 1));
  EXPECT_FALSE(session.capture->is_unwritten(GuestPhysical{page * kPageSize}, 10 * kPageSize));
}

TEST(TrackedCapture, CopiesAheadWhatIsWorthIt) {
  TrackedSession session(guest(0));
  ASSERT_TRUE(session.guest.does(Order::kWrite, 0, kPages));
  TRACK_OR_RETURN(session);
  session.save({});
  ASSERT_TRUE(session.guest.does(Order::kWrite, 0, kPages));
  ASSERT_TRUE(session.begin({}));
  ASSERT_TRUE(session.copy_ahead());
  EXPECT_EQ(session.capture->figures().rounds, 1U);
  EXPECT_EQ(session.capture->figures().copied_pages, kPages);
  session.stop();
  ASSERT_TRUE(session.freeze());
  EXPECT_EQ(session.capture->figures().frozen_pages, 0U);
  ASSERT_TRUE(session.submit());
  session.commit();
  session.compare();
}

}  // namespace
}  // namespace vmsieve::test
