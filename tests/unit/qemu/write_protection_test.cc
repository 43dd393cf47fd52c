// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/write_protection.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <set>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/qemu/victim.h"
#include "vmsieve/base/fd.h"
#include "vmsieve/qemu/remote_userfaultfd.h"

namespace vmsieve {
namespace {

using namespace std::chrono_literals;
using test::Victim;
using test::VictimBoard;

constexpr u64 kPages = 1024;
constexpr u64 kBytes = kPages * kPageSize;

enum class Backing { kPrivate, kShared };

/// Memory of 4 MiB that a victim inherits at the same address.
class Memory {
 public:
  explicit Memory(Backing backing) {
    if (backing == Backing::kShared) {
      auto made = make_memfd("test");
      if (!made || ::ftruncate(made->get(), kBytes) != 0) std::abort();
      fd_ = std::move(*made);
    }
    map(fd_.valid() ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);
  }
  explicit Memory(UniqueFd file) : fd_(std::move(file)) { map(MAP_SHARED); }
  ~Memory() { ::munmap(start_, kBytes); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  u64 address(u64 page = 0) const { return reinterpret_cast<u64>(start_) + page * kPageSize; }
  ByteRange all() const { return {address(), address(kPages)}; }
  ByteRange page(u64 index) const { return {address(index), address(index + 1)}; }
  volatile u64& word(u64 page) const {
    return *reinterpret_cast<volatile u64*>(static_cast<std::byte*>(start_) + page * kPageSize);
  }
  int fd() const { return fd_.get(); }

 private:
  void map(int flags) {
    start_ = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, flags, fd_.get(), 0);
    if (start_ == MAP_FAILED) std::abort();
  }

  UniqueFd fd_;
  void* start_ = nullptr;
};

/// A victim's life: has written every second page of the first half; then, for every order N, writes N to
/// the page that `address` names and counts a round.
auto writes_on_order(const Memory& memory) {
  return [&memory](VictimBoard& board) {
    for (u64 page = 0; page < kPages / 2; page += 2) memory.word(page) = 1;
    board.result = 1;
    for (u64 done = 0;;) {
      const u64 order = board.order;
      if (order != done) {
        memory.word(board.address) = order;
        done = order;
        ++board.rounds;
      } else {
        ::usleep(50);
      }
    }
  };
}

bool is_ready(const Victim& victim) {
  for (int i = 0; i < 5000 && victim.board().result == 0; ++i) std::this_thread::sleep_for(1ms);
  return victim.board().result != 0;
}

void order_write(const Victim& victim, u64 page) {
  victim.board().address = page;
  ++victim.board().order;
}

/// Does the write that was ordered go through within five seconds?
bool is_written(const Victim& victim) {
  for (int i = 0; i < 50000 && victim.board().rounds != victim.board().order; ++i) {
    std::this_thread::sleep_for(100us);
  }
  return victim.board().rounds == victim.board().order;
}

/// The pages whose writers wait now, at most half a second until the first.
std::set<u64> waiting_pages(const WriteProtection& protection, const Memory& memory) {
  const auto pages = protection.wait_for_writes(500);
  EXPECT_TRUE(pages) << pages.error().message();
  std::set<u64> indices;
  if (!pages) return indices;
  for (const u64 page : *pages) indices.insert((page - memory.address()) / kPageSize);
  return indices;
}

class Protection : public testing::TestWithParam<Backing> {
 protected:
  Protection() : memory_(GetParam()), victim_(writes_on_order(memory_)) {}

  void SetUp() override {
    ASSERT_TRUE(is_ready(victim_));
    auto taken = take_userfaultfd(victim_.pid());
    ASSERT_TRUE(taken) << taken.error().message();
    auto made = WriteProtection::make(std::move(*taken));
    if (!made && made.error().kind() == ErrorKind::kUnsupported) GTEST_SKIP() << made.error().message();
    ASSERT_TRUE(made) << made.error().message();
    protection_ = std::move(*made);
    const auto added = protection_->add(memory_.all());
    ASSERT_TRUE(added) << added.error().message();
  }
  void protect_all() {
    const auto result = protection_->protect(memory_.all());
    ASSERT_TRUE(result) << result.error().message();
  }
  void expect_waits_for(u64 page) {
    order_write(victim_, page);
    EXPECT_THAT(waiting_pages(*protection_, memory_), testing::ElementsAre(page));
    std::this_thread::sleep_for(20ms);
    EXPECT_NE(victim_.board().rounds, victim_.board().order) << "page " << page;
  }

  const Memory memory_;
  Victim victim_;
  std::optional<WriteProtection> protection_;
};

constexpr u64 kTouched = 10;
constexpr u64 kBetween = 11;                // never touched, in the midst of touched ones
constexpr u64 kUntouched = kPages / 2 + 7;  // and nothing near it was

TEST_P(Protection, AddedMemoryIsNotProtectedYet) {
  order_write(victim_, kTouched);
  EXPECT_TRUE(is_written(victim_));
}

TEST_P(Protection, AWriteWaitsUntilItsPageIsReleased) {
  protect_all();
  expect_waits_for(kTouched);
  ASSERT_TRUE(protection_->release(memory_.page(kTouched)));
  EXPECT_TRUE(is_written(victim_));
}

TEST_P(Protection, PagesThatWereNeverTouchedAreProtectedToo) {
  protect_all();
  for (const u64 page : {kBetween, kUntouched}) {
    expect_waits_for(page);
    ASSERT_TRUE(protection_->release(memory_.page(page)));
    EXPECT_TRUE(is_written(victim_)) << page;
  }
}

TEST_P(Protection, OtherPagesStayProtected) {
  protect_all();
  ASSERT_TRUE(protection_->release(memory_.page(kTouched)));
  order_write(victim_, kTouched);
  EXPECT_TRUE(is_written(victim_));
  expect_waits_for(kTouched + 2);
  ASSERT_TRUE(protection_->release(memory_.all()));
  EXPECT_TRUE(is_written(victim_));
}

TEST_P(Protection, AReleasedPageCanBeProtectedAgain) {
  protect_all();
  for (int round = 0; round < 3; ++round) {
    expect_waits_for(kTouched);
    ASSERT_TRUE(protection_->release(memory_.page(kTouched)));
    EXPECT_TRUE(is_written(victim_));
    ASSERT_TRUE(protection_->protect(memory_.page(kTouched)));
  }
}

TEST_P(Protection, OnlyTheRangeThatWasAskedForIsProtected) {
  ASSERT_TRUE(protection_->protect({memory_.address(100), memory_.address(200)}));
  for (const u64 page : {u64{99}, u64{200}, kUntouched}) {
    order_write(victim_, page);
    EXPECT_TRUE(is_written(victim_)) << page;
  }
  expect_waits_for(100);
}

TEST_P(Protection, NoWriteNoPagesAndNoLongWait) {
  protect_all();
  const auto begin = std::chrono::steady_clock::now();
  const auto pages = protection_->wait_for_writes(10);
  ASSERT_TRUE(pages) << pages.error().message();
  EXPECT_TRUE(pages->empty());
  EXPECT_GE(std::chrono::steady_clock::now() - begin, 9ms);
}

TEST_P(Protection, EndLetsWritersGoOn) {
  protect_all();
  expect_waits_for(kTouched);
  protection_->end();
  EXPECT_TRUE(is_written(victim_));
  order_write(victim_, kUntouched);
  EXPECT_TRUE(is_written(victim_));
}

TEST_P(Protection, WritersGoOnWhenTheObjectGoes) {
  protect_all();
  expect_waits_for(kUntouched);
  protection_.reset();
  EXPECT_TRUE(is_written(victim_));
  order_write(victim_, kTouched);
  EXPECT_TRUE(is_written(victim_));
}

TEST_P(Protection, WritersGoOnWhenItIsReplaced) {
  protect_all();
  expect_waits_for(kTouched);
  auto taken = take_userfaultfd(victim_.pid());
  ASSERT_TRUE(taken) << taken.error().message();
  auto another = WriteProtection::make(std::move(*taken));
  ASSERT_TRUE(another) << another.error().message();
  *protection_ = std::move(*another);
  EXPECT_TRUE(is_written(victim_));
}

TEST_P(Protection, ReadingDoesNotWait) {
  protect_all();
  u64 value = 0;
  const iovec local{&value, sizeof value};
  const iovec remote{reinterpret_cast<void*>(memory_.address(kTouched)), sizeof value};
  ASSERT_EQ(::process_vm_readv(victim_.pid(), &local, 1, &remote, 1, 0), static_cast<ssize_t>(sizeof value));
  EXPECT_EQ(value, 1U);
  expect_waits_for(kTouched);
}

TEST_P(Protection, ASecondUserfaultfdIsBusy) {
  auto taken = take_userfaultfd(victim_.pid());
  ASSERT_TRUE(taken) << taken.error().message();
  auto second = WriteProtection::make(std::move(*taken));
  ASSERT_TRUE(second) << second.error().message();
  const auto added = second->add(memory_.all());
  ASSERT_FALSE(added);
  EXPECT_EQ(added.error().kind(), ErrorKind::kBusy) << added.error().message();
  // And the first one still works.
  protect_all();
  expect_waits_for(kTouched);
}

TEST_P(Protection, FreeAgainAfterTheFirstHasEnded) {
  protection_.reset();
  auto taken = take_userfaultfd(victim_.pid());
  ASSERT_TRUE(taken) << taken.error().message();
  auto second = WriteProtection::make(std::move(*taken));
  ASSERT_TRUE(second) << second.error().message();
  EXPECT_TRUE(second->add(memory_.all()));
}

TEST_P(Protection, DeathOfTheProcessIsAnErrorOrNothingButNoHang) {
  protect_all();
  expect_waits_for(kTouched);
  ::kill(victim_.pid(), SIGKILL);
  ASSERT_EQ(victim_.exit_code(), -1);
  const auto begin = std::chrono::steady_clock::now();
  const auto pages = protection_->wait_for_writes(10);
  if (pages) {
    EXPECT_TRUE(pages->empty());
  } else {
    EXPECT_EQ(pages.error().kind(), ErrorKind::kVanished) << pages.error().message();
  }
  const auto protect = protection_->protect(memory_.all());
  ASSERT_FALSE(protect);
  EXPECT_EQ(protect.error().kind(), ErrorKind::kVanished) << protect.error().message();
  const auto release = protection_->release(memory_.all());
  ASSERT_FALSE(release);
  EXPECT_EQ(release.error().kind(), ErrorKind::kVanished) << release.error().message();
  protection_.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 2s);
}

TEST_P(Protection, MemoryThatIsUnmappedIsAnErrorNotAHang) {
  EXPECT_FALSE(protection_->protect({memory_.all().end + kGiB, memory_.all().end + kGiB + kPageSize}));
}

INSTANTIATE_TEST_SUITE_P(Memory, Protection, testing::Values(Backing::kPrivate, Backing::kShared),
                         [](const auto& instance) {
                           return instance.param == Backing::kPrivate ? "private" : "shared";
                         });

std::optional<WriteProtection> must_make(const Victim& victim) {
  auto taken = take_userfaultfd(victim.pid());
  EXPECT_TRUE(taken) << taken.error().message();
  if (!taken) return std::nullopt;
  auto made = WriteProtection::make(std::move(*taken));
  if (made) return std::move(*made);
  EXPECT_EQ(made.error().kind(), ErrorKind::kUnsupported) << made.error().message();
  return std::nullopt;
}

TEST(WriteProtection, FileOnADiskIsUnsupported) {
  char path[] = "/var/tmp/vmsieve-protect-XXXXXX";
  UniqueFd file{::mkstemp(path)};
  ASSERT_TRUE(file.valid());
  ::unlink(path);
  ASSERT_EQ(::ftruncate(file.get(), kBytes), 0);
  const Memory memory{std::move(file)};
  const Victim victim{writes_on_order(memory)};
  ASSERT_TRUE(is_ready(victim));
  auto protection = must_make(victim);
  if (!protection) GTEST_SKIP() << "this kernel cannot do it";
  const auto added = protection->add(memory.all());
  if (added) GTEST_SKIP() << "/var/tmp is a tmpfs";
  EXPECT_EQ(added.error().kind(), ErrorKind::kUnsupported) << added.error().message();
}

TEST(WriteProtection, MemoryThatIsNotMappedCannotBeAdded) {
  const Memory memory{Backing::kPrivate};
  const Victim victim{writes_on_order(memory)};
  ASSERT_TRUE(is_ready(victim));
  auto protection = must_make(victim);
  if (!protection) GTEST_SKIP() << "this kernel cannot do it";
  EXPECT_FALSE(protection->add({kPageSize, 2 * kPageSize}));
}

TEST(WriteProtection, WritersGoOnWhenTheProtectingProcessIsKilled) {
  const Memory memory{Backing::kPrivate};
  const Victim victim{writes_on_order(memory)};
  ASSERT_TRUE(is_ready(victim));
  const Victim tool{[&](VictimBoard& board) {
    auto taken = take_userfaultfd(victim.pid());
    if (!taken) ::_exit(1);
    auto protection = WriteProtection::make(std::move(*taken));
    if (!protection || !protection->add(memory.all()) || !protection->protect(memory.all())) ::_exit(1);
    board.result = 1;
    for (;;) ::pause();
  }};
  ASSERT_TRUE(is_ready(tool));
  order_write(victim, kTouched);
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(victim.board().rounds, 0U);
  ::kill(tool.pid(), SIGKILL);
  EXPECT_TRUE(is_written(victim));
}

TEST(WriteProtection, WritesOfManyThreadsAreAllTold) {
  constexpr u64 kWriters = 100;  // more than one read(2) of the descriptor tells of
  const Memory memory{Backing::kPrivate};
  const Victim victim{[&](VictimBoard& board) {
    board.result = 1;
    while (board.order == 0) ::usleep(50);
    std::vector<std::thread> writers;
    for (u64 i = 0; i < kWriters; ++i) {
      writers.emplace_back([&, i] {
        memory.word(i) = i;
        ++board.rounds;
      });
    }
    for (std::thread& writer : writers) writer.join();
    for (;;) ::pause();
  }};
  ASSERT_TRUE(is_ready(victim));
  auto protection = must_make(victim);
  if (!protection) GTEST_SKIP() << "this kernel cannot do it";
  ASSERT_TRUE(protection->add(memory.all()));
  ASSERT_TRUE(protection->protect(memory.all()));
  victim.board().order = 1;
  std::set<u64> told;
  for (int i = 0; i < 200 && told.size() < kWriters; ++i) told.merge(waiting_pages(*protection, memory));
  EXPECT_EQ(told.size(), kWriters);
  EXPECT_EQ(victim.board().rounds, 0U);
  ASSERT_TRUE(protection->release(memory.all()));
  for (int i = 0; i < 5000 && victim.board().rounds < kWriters; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(victim.board().rounds, kWriters);
}

TEST(WriteProtection, WritesOfTheKernelWaitToo) {
  const Memory memory{Backing::kPrivate};
  const Victim victim{[&](VictimBoard& board) {
    int ends[2];
    if (::pipe(ends) != 0) ::_exit(1);
    board.result = 1;
    while (board.order == 0) ::usleep(50);
    (void)!::write(ends[1], "kernel", 6);
    board.error = ::read(ends[0], const_cast<u64*>(&memory.word(kUntouched)), 6);
    board.rounds = 1;
    for (;;) ::pause();
  }};
  ASSERT_TRUE(is_ready(victim));
  auto protection = must_make(victim);
  if (!protection) GTEST_SKIP() << "this kernel cannot do it";
  ASSERT_TRUE(protection->add(memory.all()));
  ASSERT_TRUE(protection->protect(memory.all()));
  victim.board().order = 1;
  EXPECT_THAT(waiting_pages(*protection, memory), testing::ElementsAre(kUntouched));
  EXPECT_EQ(victim.board().rounds, 0U);
  ASSERT_TRUE(protection->release(memory.page(kUntouched)));
  EXPECT_TRUE(is_written(victim));
  EXPECT_EQ(victim.board().error, 6);
}

}  // namespace
}  // namespace vmsieve
