// SPDX-License-Identifier: Apache-2.0
// What becomes of a live capture that is disturbed, and of the guest when one ends.

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unit/capture/live_session.h"

namespace vmsieve::test {
namespace {

class LivePrivate : public Live {};
class LiveDiscard : public Live {};
class LiveEnd : public Live {};

INSTANTIATE_TEST_SUITE_P(Memory, LivePrivate, testing::Values(kKinds[0], kKinds[3]),
                         [](const auto& instance) { return std::string(instance.param.label); });
INSTANTIATE_TEST_SUITE_P(Memory, LiveDiscard, testing::Values(kKinds[0], kKinds[1], kKinds[3]),
                         [](const auto& instance) { return std::string(instance.param.label); });
INSTANTIATE_TEST_SUITE_P(Memory, LiveEnd, testing::Values(kKinds[0], kKinds[1]),
                         [](const auto& instance) { return std::string(instance.param.label); });

// ---- memory that is taken away ----

// Private memory: a hole that is punched into a file leaves the protection of its pages behind (PTE markers),
// as when they are swapped out. So shared memory that may be taken away is not captured live at all
// (start_live_capture()).
TEST_P(LivePrivate, MemoryDiscardedBeforeItIsCopiedIsBusy) {
  Session session(guest());
  const u64 first = session.guest.reserved() + 200;
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, 10));
  START_OR_RETURN(session);
  session.instant();
  ASSERT_TRUE(session.guest.does(Order::kDiscard, first + 4, 1));
  Store store(static_cast<u32>(GetParam().blocks.size()));
  const auto copied = session.copy(session.plan(), store);
  ASSERT_FALSE(copied);
  EXPECT_EQ(copied.error().kind(), ErrorKind::kBusy) << copied.error().message();
  EXPECT_TRUE(session.guest.goes_on());
}

TEST_P(LivePrivate, MemoryDiscardedAndWrittenBeforeItIsCopiedIsBusy) {
  Session session(guest());
  const u64 first = session.guest.reserved() + 200;
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, 10));
  START_OR_RETURN(session);
  session.instant();
  ASSERT_TRUE(session.guest.does(Order::kDiscard, first, 10));
  session.guest.begin(Order::kWrite, first, 10);
  Store store(static_cast<u32>(GetParam().blocks.size()));
  const auto copied = session.copy(session.plan(), store);
  ASSERT_FALSE(copied);
  EXPECT_EQ(copied.error().kind(), ErrorKind::kBusy) << copied.error().message();
  EXPECT_TRUE(session.guest.is_done());
  EXPECT_TRUE(session.guest.goes_on());
}

TEST_P(LiveDiscard, FreeMemoryMayBeDiscarded) {
  Session session(guest());
  const u64 first = session.guest.reserved() + 200;
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, 300));
  START_OR_RETURN(session);
  session.instant();
  ASSERT_TRUE(session.guest.does(Order::kDiscard, first + 100, 10));
  ASSERT_TRUE(session.guest.does(Order::kDiscard, first + 250, 10));
  Store store(static_cast<u32>(GetParam().blocks.size()));
  session.expect_all_of_the_instant(store, 2, {{Pfn{first + 100}, 10}, {Pfn{first + 240}, 60}});
}

/// Discarded memory is not protected any more, so nobody is told what becomes of it.
void discard_and_write_before_the_instant(Session& session, u64 first, u64 pages, u32 blocks) {
  ASSERT_TRUE(session.guest.does(Order::kDiscard, first, pages));
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, pages));
  session.instant();
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, 1));
  Store store(blocks);
  const PagePlan plan = session.plan();
  const auto copied = session.copy(plan, store);
  if (copied) {
    expect_equal(decode(session.guest.layout(), plan, store), session.guest, session.truth);
  } else {
    EXPECT_EQ(copied.error().kind(), ErrorKind::kBusy) << copied.error().message();
  }
}

TEST_P(LiveDiscard, MemoryDiscardedAndWrittenBeforeTheInstantIsRightOrBusy) {
  Session session(guest());
  const u64 first = session.guest.reserved() + 200;
  ASSERT_TRUE(session.guest.does(Order::kWrite, first, 10));
  START_OR_RETURN(session);
  discard_and_write_before_the_instant(session, first, 10, static_cast<u32>(GetParam().blocks.size()));
}

TEST_P(LiveDiscard, UntouchedMemoryDiscardedAndWrittenBeforeTheInstantIsRightOrBusy) {
  Session session(guest());
  START_OR_RETURN(session);
  discard_and_write_before_the_instant(session, session.guest.reserved() + 200, 10,
                                       static_cast<u32>(GetParam().blocks.size()));
}

// ---- the guest comes first ----

TEST_P(LiveEnd, AbandonedWhileTrackingTheGuestGoesOn) {
  Session session(guest());
  START_OR_RETURN(session);
  sleep_up_to(3ms);
  session.capture.reset();
  EXPECT_TRUE(session.guest.goes_on());
}

TEST_P(LiveEnd, AbandonedAfterTheInstantTheGuestGoesOn) {
  Session session(guest());
  START_OR_RETURN(session);
  session.instant();
  sleep_up_to(3ms);
  session.capture.reset();
  EXPECT_TRUE(session.guest.goes_on());
  EXPECT_TRUE(session.guest.does(Order::kWrite, session.guest.reserved(), kReserved));
}

TEST_P(LiveEnd, AfterTheCopyTheGuestGoesOnThoughNothingIsDropped) {
  Session session(guest());
  START_OR_RETURN(session);
  session.instant();
  Store store(static_cast<u32>(GetParam().blocks.size()));
  ASSERT_TRUE(session.copy(session.plan(), store));
  EXPECT_TRUE(session.guest.goes_on());
  EXPECT_TRUE(session.guest.does(Order::kWrite, session.guest.reserved(), kReserved));
}

TEST_P(LiveEnd, AfterAFullDiskTheGuestGoesOn) {
  Session session(guest());
  START_OR_RETURN(session);
  session.instant();
  Store store(static_cast<u32>(GetParam().blocks.size()), Store::tiny(), 0us, 100 * kPageSize);
  const auto copied = session.copy(session.plan(), store);
  ASSERT_FALSE(copied);
  EXPECT_EQ(copied.error().kind(), ErrorKind::kIo) << copied.error().message();
  EXPECT_TRUE(session.guest.goes_on());
  const auto outcome = store.pipeline->finish();
  ASSERT_FALSE(outcome);
  EXPECT_NE(outcome.error().message().find("No space left"), std::string::npos) << outcome.error().message();
}

TEST_P(LiveEnd, CanBeginAgainAfterOneThatWasAbandoned) {
  Session session(guest());
  START_OR_RETURN(session);
  session.instant();
  session.capture.reset();
  START_OR_RETURN(session);
  session.instant();
  Store store(static_cast<u32>(GetParam().blocks.size()));
  session.expect_all_of_the_instant(store);
}

TEST_P(LiveEnd, ASecondCaptureOfTheSameGuestIsBusy) {
  Session session(guest());
  START_OR_RETURN(session);
  const auto second = session.try_start();
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().kind(), ErrorKind::kBusy) << second.error().message();
  session.instant();
  Store store(static_cast<u32>(GetParam().blocks.size()));
  session.expect_all_of_the_instant(store);
}

/// The kill comes from another thread after `delay`.
class Killer {
 public:
  Killer(WritingGuest& guest, std::chrono::microseconds delay)
      : thread_([&guest, delay] {
          std::this_thread::sleep_for(delay);
          guest.kill();
        }) {}
  ~Killer() { thread_.join(); }

 private:
  std::thread thread_;
};

TEST_P(LiveEnd, ProcessThatDiesDuringTheCopyHasVanished) {
  Session session(guest());
  START_OR_RETURN(session);
  session.instant();
  Store store(static_cast<u32>(GetParam().blocks.size()), Store::tiny(), 200us);
  const PagePlan plan = session.plan();
  Result<void> copied;
  {
    const Killer killer(session.guest, 10ms);
    copied = session.copy(plan, store);
  }
  if (copied) GTEST_SKIP() << "the copy was done before the process died";
  EXPECT_EQ(copied.error().kind(), ErrorKind::kVanished) << copied.error().message();
}

TEST_P(LiveEnd, ProcessThatDiesBeforeTheCopyHasVanished) {
  Session session(guest());
  START_OR_RETURN(session);
  session.instant();
  session.guest.kill();
  Store store(static_cast<u32>(GetParam().blocks.size()));
  const auto copied = session.copy(session.plan(), store);
  ASSERT_FALSE(copied);
  EXPECT_EQ(copied.error().kind(), ErrorKind::kVanished) << copied.error().message();
}

TEST_P(LiveEnd, ProcessThatDiesBeforeTheInstantHasVanished) {
  Session session(guest());
  START_OR_RETURN(session);
  sleep_up_to(5ms);
  session.guest.kill();
  auto result = session.capture->freeze();
  Store store(static_cast<u32>(GetParam().blocks.size()));
  if (result) result = session.copy(session.plan(), store);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind(), ErrorKind::kVanished) << result.error().message();
}

TEST(LiveCapture, WhenItsProcessIsKilledTheGuestGoesOn) {
  for (const bool frozen : {false, true}) {
    Session session({.blocks = kKinds[0].blocks});
    START_OR_RETURN(session);  // is skipped when this kernel cannot
    session.capture.reset();
    int ready[2];
    ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    const pid_t tool = ::fork();
    if (tool == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      auto started = session.try_start();
      if (!started || (frozen && !(*started)->freeze())) ::_exit(1);
      (void)!::write(ready[1], "x", 1);
      for (;;) ::pause();
    }
    ::close(ready[1]);
    char byte = 0;
    const bool reached = ::read(ready[0], &byte, 1) == 1;
    ::close(ready[0]);
    ::kill(tool, SIGKILL);
    ::waitpid(tool, nullptr, 0);
    ASSERT_TRUE(reached);
    EXPECT_TRUE(session.guest.goes_on()) << (frozen ? "frozen" : "tracking");
  }
}

TEST(LiveCapture, AWriteThatWaitsTooLongEndsTheCapture) {
  Session session({.blocks = {{.pages = kMainPages}}, .writers = 1, .reserved_pages = kReserved},
                  {.longest_wait = 100ms, .beat = {}});
  const u64 reserved = session.guest.reserved();
  ASSERT_TRUE(session.guest.does(Order::kWrite, reserved, kReserved));
  START_OR_RETURN(session);
  session.instant();
  Store store(1, Store::tiny(), 300ms);
  const PagePlan plan = session.plan();
  // The guest's own writes may all come before the copying: on a machine that is busy with other things.
  std::thread write;
  store.object.on_append = [&] {
    if (!write.joinable())
      write = std::thread([&] { EXPECT_TRUE(session.guest.does(Order::kWrite, reserved, 1)); });
  };
  const auto copied = session.copy(plan, store);
  store.pipeline.reset();
  ASSERT_TRUE(write.joinable());
  write.join();
  ASSERT_FALSE(copied);
  EXPECT_EQ(copied.error().kind(), ErrorKind::kTimeout) << copied.error().message();
  EXPECT_TRUE(session.guest.goes_on());
}

// What is copied before there is a plan takes room beside the pool, which must not leave the pool without
// any.
TEST(LiveCapture, WhatIsCopiedBeforeThePlanGoesThroughPoolsOfAnySize) {
  for (const u64 buffers : {2U, 3U, 4U, 8U, 15U, 16U, 17U, 64U}) {
    SCOPED_TRACE(buffers);
    Session session({.blocks = {{.pages = kMainPages}}, .writers = 1, .reserved_pages = kReserved});
    const u64 reserved = session.guest.reserved();
    ASSERT_TRUE(session.guest.does(Order::kWrite, reserved, kReserved));
    START_OR_RETURN(session);
    session.instant();
    ASSERT_TRUE(session.guest.does(Order::kWrite, reserved, 1));  // it waits until its unit is copied
    CapturePipeline::Options options = Store::tiny();
    options.buffer_bytes = buffers * options.chunk_pages * kPageSize;
    Store store(1, options);
    ASSERT_EQ(store.pipeline->pool_buffers(), buffers);
    session.expect_all_of_the_instant(store);
  }
}

TEST(LiveCapture, BeatsTenTimesASecond) {
  std::atomic<int> beats = 0;
  Session session({.blocks = kKinds[0].blocks}, {.beat = [&] { ++beats; }});
  START_OR_RETURN(session);
  std::this_thread::sleep_for(450ms);
  EXPECT_GE(beats, 3);
  EXPECT_LE(beats, 6);
  session.instant();
  const int before = beats;
  std::this_thread::sleep_for(250ms);
  EXPECT_GT(beats, before);
  session.capture.reset();
  const int at_end = beats;
  std::this_thread::sleep_for(150ms);
  EXPECT_EQ(beats, at_end);
}

TEST(LiveCapture, ProgressReachesTheEnd) {
  Session session({.blocks = kKinds[0].blocks});
  START_OR_RETURN(session);
  session.instant();
  const PagePlan plan = session.plan();
  Store store(2);
  Progress last;
  const auto copied = session.capture->copy(plan, *store.pipeline, 1, [&](const Progress& now) {
    EXPECT_GE(now.done_bytes, last.done_bytes);
    EXPECT_LE(now.done_bytes, now.total_bytes);
    last = now;
  });
  ASSERT_TRUE(copied) << copied.error().message();
  EXPECT_EQ(last.total_bytes, plan.read_pages * kPageSize);
  EXPECT_GT(last.done_bytes, 0U);
}

}  // namespace
}  // namespace vmsieve::test
