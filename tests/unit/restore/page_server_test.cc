// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/page_server.h"

#include <atomic>
#include <map>
#include <random>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/restore/restored_memory.h"

namespace vmsieve {
namespace {

using testing::HasSubstr;

class PageServerTest : public RestoredMemoryTest {
 protected:
  Result<std::unique_ptr<PageServer>> start(const PageServer::Options& options = {.threads = 2}) {
    VMSIEVE_ASSIGN(auto opened, CheckpointReader::open(*store_, kId));
    std::shared_ptr<const CheckpointReader> reader = std::move(opened);
    MissingPlan plan(reader->index(), {true}, reader_.layout());
    return PageServer::start(std::move(reader), std::move(plan), {reader_.pid(), log_path()}, options);
  }
};

INSTANTIATE_TEST_SUITE_P(Memory, PageServerTest, testing::Bool(), [](const auto& instance) {
  return instance.param ? std::string("shared") : std::string("private");
});

TEST_P(PageServerTest, EveryPageIsWhatWasSaved) {
  auto server = start();
  ASSERT_TRUE(server) << server.error().message();
  reader_.board().go = true;
  const auto filled = (*server)->wait();
  ASSERT_TRUE(filled) << filled.error().message();
  EXPECT_TRUE(reader_.is_done());
  EXPECT_EQ(reader_.board().checked, kPages);
  EXPECT_EQ(reader_.board().wrong, 0U);
  EXPECT_EQ((*server)->figures().pages, kPages / 4 * 3);
  server->reset();
  EXPECT_EQ(log(), "QEMU said this\n");
  EXPECT_EQ(::kill(reader_.pid(), 0), 0);
  // Nothing of ours is left in it.
  for (const auto& entry : fs::directory_iterator(fmt::format("/proc/{}/fd", reader_.pid())))
    EXPECT_THAT(fs::read_symlink(entry).string(), testing::Not(HasSubstr("userfaultfd")));
}

TEST_P(PageServerTest, PagesThatNobodyTouchesComeToo) {
  auto server = start();
  ASSERT_TRUE(server) << server.error().message();
  const auto filled = (*server)->wait();
  ASSERT_TRUE(filled) << filled.error().message();
  reader_.board().go = true;
  EXPECT_TRUE(reader_.is_done());
  EXPECT_EQ(reader_.board().wrong, 0U);
}

/// The frames in the order in which the process reads them.
WorkingSet in_reading_order() {
  std::map<u64, u64> frames;  // by the stretch's number
  for (u64 stretch = 0; stretch < kPages / kFramePages; ++stretch)
    if (const u64 word = word_of(stretch * kFramePages); word != 0 && word != 0x5a5a5a5a5a5a5a5a)
      frames.emplace(stretch, frames.size());
  WorkingSet order;
  std::set<u64> seen;
  for (u64 i = 0; i < kPages; ++i) {
    const u64 stretch = i * 1237 % kPages / kFramePages;
    if (frames.contains(stretch) && seen.insert(stretch).second) order.push_back(frames.at(stretch));
  }
  return order;
}

TEST_P(PageServerTest, WhatIsWantedFirstIsNotedAndComesFirstTheNextTime) {
  WorkingSet noted;
  {
    auto server = start({.threads = 2, .record = true});
    ASSERT_TRUE(server) << server.error().message();
    reader_.board().go = true;
    const auto filled = (*server)->wait();
    ASSERT_TRUE(filled) << filled.error().message();
    noted = (*server)->working_set();
    EXPECT_EQ((*server)->figures().first_jobs, 0U);
  }
  // Nothing else came in while the process read, so all that it read was waited for.
  EXPECT_EQ(noted, in_reading_order());
  EXPECT_EQ(reader_.board().wrong, 0U);

  Reader again(GetParam());
  auto opened = CheckpointReader::open(*store_, kId);
  ASSERT_TRUE(opened);
  std::shared_ptr<const CheckpointReader> reader = std::move(*opened);
  MissingPlan plan(reader->index(), {true}, again.layout());
  auto server = PageServer::start(std::move(reader), std::move(plan), {again.pid(), log_path()},
                                  {.threads = 2, .first = noted});
  ASSERT_TRUE(server) << server.error().message();
  ASSERT_TRUE((*server)->wait());
  EXPECT_EQ((*server)->figures().first_jobs, noted.size());
  EXPECT_EQ((*server)->figures().faults, 0U);
  EXPECT_TRUE((*server)->working_set().empty());
  again.board().go = true;
  EXPECT_TRUE(again.is_done());
  EXPECT_EQ(again.board().wrong, 0U);
}

TEST_P(PageServerTest, ADamagedFrameEndsTheProcess) {
  damage();
  auto server = start();
  ASSERT_TRUE(server) << server.error().message();
  reader_.board().go = true;
  const auto filled = (*server)->wait();
  ASSERT_FALSE(filled);
  EXPECT_EQ(filled.error().kind(), ErrorKind::kDamaged);
  EXPECT_EQ(reader_.end_signal(), SIGKILL);
  EXPECT_EQ(reader_.board().wrong, 0U);
  EXPECT_THAT(log(), HasSubstr("cannot be brought in, so it was ended"));
}

TEST_P(PageServerTest, ItsEndBeforeAllIsThereEndsTheProcess) {
  auto server = start();
  ASSERT_TRUE(server) << server.error().message();
  server->reset();
  const bool ended = reader_.end_signal() == SIGKILL;
  // Unless it was that fast.
  if (!ended) {
    reader_.board().go = true;
    EXPECT_TRUE(reader_.is_done());
  }
  EXPECT_EQ(reader_.board().wrong, 0U);
}

TEST_P(PageServerTest, WhenItIsKilledTheProcessIsEndedAndItsLogSaysSo) {
  std::mt19937 random{std::random_device{}()};
  const pid_t serving = ::fork();
  if (serving == 0) {
    auto server = start({.threads = 1});
    if (!server) ::_exit(1);
    reader_.board().go = true;
    ::usleep(static_cast<useconds_t>(std::uniform_int_distribution<>(0, 500)(random)));
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(serving, &status, 0), serving);
  ASSERT_TRUE(WIFSIGNALED(status)) << "the server did not start";
  if (reader_.end_signal() == SIGKILL) {
    EXPECT_THAT(log(), HasSubstr("has died before all was there"));
  } else {
    EXPECT_TRUE(reader_.is_done());  // all was there before
  }
  EXPECT_EQ(reader_.board().wrong, 0U);
}

TEST_P(PageServerTest, AProcessThatEndsByItselfHasVanished) {
  auto server = start();
  ASSERT_TRUE(server) << server.error().message();
  ::kill(reader_.pid(), SIGKILL);
  const auto filled = (*server)->wait();
  if (filled.ok()) {
    EXPECT_EQ((*server)->figures().pages, kPages / 4 * 3);  // all was there before
  } else {
    EXPECT_EQ(filled.error().kind(), ErrorKind::kVanished);
  }
  server->reset();
  EXPECT_EQ(log(), "QEMU said this\n");
}

TEST_P(PageServerTest, WhereItCannotStartTheProcessIsLeftAlone) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t holder = ::fork();
  if (holder == 0) {
    const auto lock = VmLock::take_for_fill(reader_.pid());
    (void)!::write(ready[1], "r", 1);
    for (;;) ::pause();
  }
  char word = 0;
  ASSERT_EQ(::read(ready[0], &word, 1), 1);
  {
    const auto server = start();
    ASSERT_FALSE(server);
    EXPECT_EQ(server.error().kind(), ErrorKind::kBusy);
    EXPECT_THAT(server.error().message(), HasSubstr(fmt::format("process {}", holder)));
    const auto waited = VmLock::wait_for_fill(reader_.pid(), 50ms);
    ASSERT_FALSE(waited);
    EXPECT_EQ(waited.error().kind(), ErrorKind::kBusy);
  }
  ::kill(holder, SIGKILL);
  ASSERT_EQ(::waitpid(holder, nullptr, 0), holder);
  ::close(ready[0]);
  ::close(ready[1]);
  EXPECT_TRUE(VmLock::wait_for_fill(reader_.pid(), 50ms));
  EXPECT_EQ(::kill(reader_.pid(), 0), 0);
  EXPECT_EQ(log(), "QEMU said this\n");
  auto server = start();
  ASSERT_TRUE(server) << server.error().message();
  reader_.board().go = true;
  EXPECT_TRUE((*server)->wait());
  EXPECT_TRUE(reader_.is_done());
  EXPECT_EQ(reader_.board().wrong, 0U);
}

}  // namespace
}  // namespace vmsieve
