// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/live_capture.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include <gtest/gtest.h>

#include "unit/capture/writing_guest.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/qemu/remote_userfaultfd.h"
#include "vmsieve/store/memory_writer.h"

namespace vmsieve {
namespace {

using namespace std::chrono_literals;
using test::WritingGuest;
using Order = WritingGuest::Order;

/// An object in memory. `slowness` passes at every append; from `fail_after` bytes on it is a full disk.
class MemoryObject final : public ObjectWriter {
 public:
  explicit MemoryObject(std::chrono::microseconds slowness = 0us, u64 fail_after = ~u64{0})
      : slowness_(slowness), fail_after_(fail_after) {}
  Result<void> append(std::span<const std::byte> more) override {
    if (slowness_ > 0us) std::this_thread::sleep_for(slowness_);
    if (bytes.size() + more.size() > fail_after_)
      return Error(ErrorKind::kIo, "cannot write: No space left on device");
    bytes.insert(bytes.end(), more.begin(), more.end());
    return {};
  }
  u64 size() const override { return bytes.size(); }
  Result<void> finish() override { return {}; }

  std::vector<std::byte> bytes;

 private:
  const std::chrono::microseconds slowness_;
  const u64 fail_after_;
};

/// Where what is captured goes.
struct Store {
  explicit Store(u32 blocks, const CapturePipeline::Options& options = roomy(),
                 std::chrono::microseconds slowness = 0us, u64 fail_after = ~u64{0})
      : object(slowness, fail_after) {
    auto made = CapturePipeline::make(writer, blocks, options);
    EXPECT_TRUE(made) << made.error().message();
    pipeline = std::move(*made);
    pipeline->open_gate();
  }
  static CapturePipeline::Options roomy() {
    return {.compression = {.codec = Codec::kLz4, .level = 1}, .threads = 2, .buffer_bytes = 8 * kMiB};
  }
  static CapturePipeline::Options tiny() {
    return {.compression = {.codec = Codec::kLz4, .level = 1},
            .threads = 1,
            .buffer_bytes = 8 * kPageSize,
            .chunk_pages = 4};
  }

  MemoryObject object;
  MemoryObjectWriter writer{object, "0123456789abcdef"};
  std::unique_ptr<CapturePipeline> pipeline;
};

const ProgressFunction kSilent = [](const Progress&) {};

/// Every page that was captured, decoded. Fails the test when a page is missing or there twice, and leaves it
/// out then. Free pages are empty.
using Pages = std::vector<std::vector<std::vector<std::byte>>>;  // by block and page
Pages decode(const RamLayout& layout, const PagePlan& plan, Store& store) {
  Pages pages(layout.blocks.size());
  auto outcome = store.pipeline->finish();
  EXPECT_TRUE(outcome) << outcome.error().message();
  if (!outcome) return pages;
  std::vector<BlockIndex> index;
  for (std::size_t block = 0; block < layout.blocks.size(); ++block) {
    std::vector<PageRun>& runs = outcome->runs[block];
    runs.insert(runs.end(), plan.blocks[block].known.begin(), plan.blocks[block].known.end());
    std::sort(runs.begin(), runs.end(),
              [](const PageRun& a, const PageRun& b) { return a.first_page < b.first_page; });
    index.push_back({layout.blocks[block].name, layout.blocks[block].used_bytes, {}});
    for (const PageRun& run : runs) {
      PageRun* const last = index.back().runs.empty() ? nullptr : &index.back().runs.back();
      const bool joins =
          last != nullptr && last->kind == run.kind && run.kind != RunKind::kData && last->fill == run.fill;
      if (joins) {
        last->pages += run.pages;
      } else {
        index.back().runs.push_back(run);
      }
    }
  }
  // Checks that the runs cover every page once.
  const auto finished = store.writer.finish(index);
  EXPECT_TRUE(finished) << finished.error().message();
  if (!finished) return pages;
  std::vector<std::vector<std::byte>> frames;
  for (const Frame& frame : store.writer.index().frames) {
    frames.emplace_back();
    const auto decoded = decode_frame(
        frame, std::span(store.object.bytes).subspan(frame.offset, frame.stored_bytes), frames.back());
    EXPECT_TRUE(decoded) << decoded.error().message();
  }
  for (std::size_t block = 0; block < index.size(); ++block) {
    for (const PageRun& run : index[block].runs) {
      for (u64 i = 0; i < run.pages; ++i) {
        std::vector<std::byte> page;
        if (run.kind == RunKind::kFill) page.assign(kPageSize, std::byte{run.fill});
        if (run.kind == RunKind::kData) {
          const auto from = frames[run.frame].begin() + static_cast<i64>((run.page_in_frame + i) * kPageSize);
          page.assign(from, from + kPageSize);
        }
        pages[block].push_back(std::move(page));
      }
    }
  }
  return pages;
}

/// Not std::ranges::equal: checked byte by byte under a sanitizer, it would be most of the tests' time.
bool same(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

void expect_equal(const Pages& captured, const WritingGuest& guest, const std::vector<std::byte>& truth) {
  int faults = 0;
  for (u32 block = 0; block < captured.size(); ++block) {
    ASSERT_EQ(captured[block].size(), guest.pages(block));
    for (u64 page = 0; page < captured[block].size(); ++page) {
      if (captured[block][page].empty()) continue;
      const auto expected = guest.truth_of(truth, block, page);
      if (same(captured[block][page], expected)) continue;
      ADD_FAILURE() << "block " << block << " page " << page << ": captured "
                    << WritingGuest::describe(captured[block][page]) << ", was "
                    << WritingGuest::describe(expected);
      if (++faults == 5) return;
    }
  }
}

/// One guest and a live capture of it.
class Session {
 public:
  explicit Session(const WritingGuest::Options& options, const LiveCapture::Options& live = {})
      : guest(options) {
    auto opened = LiveMemory::open(guest.pid(), guest.layout());
    EXPECT_TRUE(opened) << opened.error().message();
    memory = std::move(*opened);
    live_options_ = live;
  }

  void start() {
    auto started = try_start();
    if (!started && started.error().kind() == ErrorKind::kUnsupported)
      GTEST_SKIP() << started.error().message();
    ASSERT_TRUE(started) << started.error().message();
    capture = std::move(*started);
  }
  Result<std::unique_ptr<LiveCapture>> try_start() {
    VMSIEVE_ASSIGN(UniqueFd userfaultfd, take_userfaultfd(guest.pid()));
    VMSIEVE_ASSIGN(WriteProtection protection, WriteProtection::make(std::move(userfaultfd)));
    return LiveCapture::start(*memory, guest.pid(), std::move(protection), live_options_);
  }

  /// The guest stops for it and runs again.
  void instant() {
    ASSERT_TRUE(guest.stop());
    truth = guest.truth();
    const auto frozen = capture->freeze();
    ASSERT_TRUE(frozen) << frozen.error().message();
    guest.resume();
  }

  PagePlan plan(const std::vector<PfnRange>& free = {}) const {
    return plan_pages(
        guest.layout(), free, 0,
        [&](u32 block, u64 first, u64 count) { return capture->resident(block, first, count); },
        Ask::kAlways);
  }

  Result<void> copy(const PagePlan& plan, Store& store, unsigned threads = 2) {
    return capture->copy(plan, *store.pipeline, threads, kSilent);
  }

  /// Copies everything and compares.
  void expect_all_of_the_instant(Store& store, unsigned threads = 2, const std::vector<PfnRange>& free = {}) {
    const PagePlan planned = plan(free);
    const auto copied = copy(planned, store, threads);
    ASSERT_TRUE(copied) << copied.error().message();
    expect_equal(decode(guest.layout(), planned, store), guest, truth);
  }

  WritingGuest guest;
  std::unique_ptr<LiveMemory> memory;
  std::unique_ptr<LiveCapture> capture;
  std::vector<std::byte> truth;

 private:
  LiveCapture::Options live_options_;
};

#define START_OR_RETURN(session) \
  session.start();               \
  if (session.capture == nullptr) return

constexpr u64 kMainPages = 2048;  // of the first block
constexpr u64 kReserved = 512;    // one unit

/// How the guest's memory is made.
struct Kind {
  const char* label;
  std::vector<WritingGuest::BlockSpec> blocks;
};

void PrintTo(const Kind& kind, std::ostream* out) { *out << kind.label; }

const Kind kKinds[] = {
    {"private", {{.pages = kMainPages}, {.pages = 700, .pages_off_unit = 7}}},
    {"shared",
     {{.pages = kMainPages, .shared = true}, {.pages = 700, .shared = true, .pages_off_unit = 511}}},
    {"mixed",
     {{.pages = kMainPages},
      {.pages = 5, .pages_off_unit = 510},
      {.pages = 0},
      {.pages = 800, .shared = true, .pages_off_unit = 100},
      {.pages = 512, .huge = true}}},
    {"huge", {{.pages = kMainPages, .huge = true}, {.pages = 512, .shared = true, .huge = true}}},
};

class Live : public testing::TestWithParam<Kind> {
 protected:
  Live()
      : seed_(std::random_device{}()),
        random_(seed_),
        trace_(__FILE__, __LINE__, fmt::format("seed {}", seed_)) {}

  WritingGuest::Options guest() {
    return {
        .blocks = GetParam().blocks, .writers = 2, .reserved_pages = kReserved, .seed = random_() % 100000};
  }
  u64 below(u64 limit) { return std::uniform_int_distribution<u64>(0, limit - 1)(random_); }
  void sleep_up_to(std::chrono::microseconds most) {
    std::this_thread::sleep_for(std::chrono::microseconds(below(static_cast<u64>(most.count()))));
  }
  /// Page frames of the first block.
  std::vector<PfnRange> some_free_pages() {
    std::vector<PfnRange> free;
    for (u64 at = below(100); at < kMainPages - kReserved;) {
      const u64 count = std::min(1 + below(below(2) == 0 ? 10 : 900), kMainPages - kReserved - at);
      free.push_back({Pfn{at}, count});
      at += count + 1 + below(300);
    }
    return free;
  }

  const u64 seed_;
  std::mt19937_64 random_;
  const testing::ScopedTrace trace_;
};

INSTANTIATE_TEST_SUITE_P(Memory, Live, testing::ValuesIn(kKinds),
                         [](const auto& instance) { return std::string(instance.param.label); });

/// Where the kinds that are put together of others have nothing to add.
class LiveSimple : public Live {};
class LiveDiscard : public Live {};

INSTANTIATE_TEST_SUITE_P(Memory, LiveSimple, testing::Values(kKinds[0], kKinds[1]),
                         [](const auto& instance) { return std::string(instance.param.label); });
INSTANTIATE_TEST_SUITE_P(Memory, LiveDiscard, testing::Values(kKinds[0], kKinds[1], kKinds[3]),
                         [](const auto& instance) { return std::string(instance.param.label); });

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

// ---- memory that is taken away ----

// A hole that is punched into a file leaves the protection of its pages behind (PTE markers), as when they
// are swapped out, so it is not told from a page that holds zeros.
constexpr const char* kHolesAreNotNoticed =
    "holes punched into shared memory after the instant are not noticed";

TEST_P(LiveDiscard, MemoryDiscardedBeforeItIsCopiedIsBusy) {
  if (GetParam().blocks[0].shared) GTEST_SKIP() << kHolesAreNotNoticed;
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

TEST_P(LiveDiscard, MemoryDiscardedAndWrittenBeforeItIsCopiedIsBusy) {
  if (GetParam().blocks[0].shared) GTEST_SKIP() << kHolesAreNotNoticed;
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

TEST_P(LiveSimple, AbandonedWhileTrackingTheGuestGoesOn) {
  Session session(guest());
  START_OR_RETURN(session);
  sleep_up_to(3ms);
  session.capture.reset();
  EXPECT_TRUE(session.guest.goes_on());
}

TEST_P(LiveSimple, AbandonedAfterTheInstantTheGuestGoesOn) {
  Session session(guest());
  START_OR_RETURN(session);
  session.instant();
  sleep_up_to(3ms);
  session.capture.reset();
  EXPECT_TRUE(session.guest.goes_on());
  EXPECT_TRUE(session.guest.does(Order::kWrite, session.guest.reserved(), kReserved));
}

TEST_P(LiveSimple, AfterTheCopyTheGuestGoesOnThoughNothingIsDropped) {
  Session session(guest());
  START_OR_RETURN(session);
  session.instant();
  Store store(static_cast<u32>(GetParam().blocks.size()));
  ASSERT_TRUE(session.copy(session.plan(), store));
  EXPECT_TRUE(session.guest.goes_on());
  EXPECT_TRUE(session.guest.does(Order::kWrite, session.guest.reserved(), kReserved));
}

TEST_P(LiveSimple, AfterAFullDiskTheGuestGoesOn) {
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

TEST_P(LiveSimple, CanBeginAgainAfterOneThatWasAbandoned) {
  Session session(guest());
  START_OR_RETURN(session);
  session.instant();
  session.capture.reset();
  START_OR_RETURN(session);
  session.instant();
  Store store(static_cast<u32>(GetParam().blocks.size()));
  session.expect_all_of_the_instant(store);
}

TEST_P(LiveSimple, ASecondCaptureOfTheSameGuestIsBusy) {
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

TEST_P(LiveSimple, ProcessThatDiesDuringTheCopyHasVanished) {
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

TEST_P(LiveSimple, ProcessThatDiesBeforeTheCopyHasVanished) {
  Session session(guest());
  START_OR_RETURN(session);
  session.instant();
  session.guest.kill();
  Store store(static_cast<u32>(GetParam().blocks.size()));
  const auto copied = session.copy(session.plan(), store);
  ASSERT_FALSE(copied);
  EXPECT_EQ(copied.error().kind(), ErrorKind::kVanished) << copied.error().message();
}

TEST_P(LiveSimple, ProcessThatDiesBeforeTheInstantHasVanished) {
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
  Session session({.blocks = kKinds[0].blocks}, {.longest_wait = 100ms, .beat = {}});
  START_OR_RETURN(session);
  session.instant();
  Store store(2, Store::tiny(), 300ms);
  const PagePlan plan = session.plan();
  const auto copied = session.copy(plan, store);
  ASSERT_FALSE(copied);
  EXPECT_EQ(copied.error().kind(), ErrorKind::kTimeout) << copied.error().message();
  EXPECT_TRUE(session.guest.goes_on());
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
}  // namespace vmsieve
