// SPDX-License-Identifier: Apache-2.0
// What becomes of a process when those who work on it die in between.
#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <functional>
#include <random>
#include <sstream>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "unit/qemu/victim.h"
#include "vmsieve/qemu/attach_child.h"
#include "vmsieve/qemu/forked_child.h"
#include "vmsieve/qemu/remote_userfaultfd.h"
#include "vmsieve/qemu/thread_call.h"

namespace vmsieve {
namespace {

using namespace std::chrono_literals;
using test::Victim;
using test::VictimBoard;

const int kCountedSignal = SIGRTMIN + 3;
constexpr int kBlockedSignal = SIGUSR2;

std::atomic<u64>* handled = nullptr;

/// A signal handler, an alternate stack and a mask, as check_state() expects them.
void set_state(VictimBoard& board) {
  static char alternate[65536];
  handled = &board.signals;
  struct sigaction action {};
  action.sa_handler = [](int) { ++*handled; };
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  ::sigaction(kCountedSignal, &action, nullptr);
  stack_t stack{};
  stack.ss_sp = alternate;
  stack.ss_size = sizeof alternate;
  ::sigaltstack(&stack, nullptr);
  sigset_t blocked;
  ::sigemptyset(&blocked);
  ::sigaddset(&blocked, kBlockedSignal);
  ::sigprocmask(SIG_SETMASK, &blocked, nullptr);
}

bool check_state() {
  stack_t stack{};
  ::sigaltstack(nullptr, &stack);
  sigset_t mask;
  ::sigprocmask(SIG_SETMASK, nullptr, &mask);
  u64 bits = 0;
  std::memcpy(&bits, &mask, sizeof bits);
  return stack.ss_size == 65536 && stack.ss_flags == 0 && bits == u64{1} << (kBlockedSignal - 1);
}

/// Makes a call that waits for 300 us: 0, or its errno. A handled signal ends each of them, so EINTR counts
/// only without one.
long wait_call(VictimBoard& board, const std::function<long(timespec*)>& call) {
  const u64 signals = board.signals;
  timespec time{0, 300000};
  if (call(&time) == 0) return 0;
  return errno == EINTR && board.signals != signals ? 0 : errno;
}

/// Checks everything, and waits now and then.
void check_itself(VictimBoard& board) {
  set_state(board);
  for (;;) {
    if (!test::registers_survive(20000) || !check_state()) ++board.faults;
    const long slept = wait_call(board, [](timespec* time) {
      return ::syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, time, nullptr);
    });
    if (slept == EINTR) ++board.interrupted;
    if (slept != 0 && slept != EINTR) ++board.faults;
    const long polled =
        wait_call(board, [](timespec* time) { return ::syscall(SYS_ppoll, nullptr, 0, time, nullptr, 8); });
    if (polled != 0) ++board.faults;
    ++board.rounds;
  }
}

/// Plans or fails the test.
CallPlan must_plan(const Victim& victim) {
  auto plan = plan_calls(victim.pid());
  if (plan) return *plan;
  ADD_FAILURE() << plan.error().message();
  return {};
}

/// Where a tracer ends, in the order in which it comes by.
enum class Point {
  kPrepared,
  kCallSet,
  kCallEntered,
  kCallDone,
  kCloseSet,
  kCloseEntered,
  kCloseDone,
  kRestored
};

bool run_to_stop(pid_t pid) {
  int status = 0;
  return ::ptrace(PTRACE_SYSCALL, pid, nullptr, nullptr) == 0 && ::waitpid(pid, &status, __WALL) == pid &&
         WIFSTOPPED(status) && WSTOPSIG(status) == (SIGTRAP | 0x80);
}

/// A tracer's life until `point`; 0 when it was reached.
int trace_until(pid_t pid, const CallPlan& plan, Point point) {
  const long options = PTRACE_O_TRACESYSGOOD;
  int status = 0;
  if (::ptrace(PTRACE_SEIZE, pid, nullptr, options) != 0) return 1;
  if (::ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr) != 0) return 2;
  if (::waitpid(pid, &status, __WALL) != pid) return 3;
  ThreadCall call{pid, plan};
  if (!call.prepare().ok()) return 4;
  if (point == Point::kPrepared) return 0;
  if (!call.start(SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK}, true).ok()) return 5;
  if (point == Point::kCallSet) return 0;
  if (!run_to_stop(pid)) return 6;
  if (point == Point::kCallEntered) return 0;
  if (!run_to_stop(pid)) return 7;
  if (point == Point::kCallDone) return 0;
  long number = -1;
  if (!call.read_result(number).ok() || number < 0) return 8;
  if (!call.start(SYS_close, {static_cast<u64>(number)}, false).ok()) return 9;
  if (point == Point::kCloseSet) return 0;
  if (!run_to_stop(pid)) return 10;
  if (point == Point::kCloseEntered) return 0;
  if (!run_to_stop(pid)) return 11;
  if (point == Point::kCloseDone) return 0;
  return call.restore().ok() ? 0 : 12;
}

int tracer_that_ends(pid_t pid, const CallPlan& plan, Point point) {
  const pid_t tracer = ::fork();
  if (tracer == 0) {
    const int reached = trace_until(pid, plan, point);
    if (reached != 0) ::_exit(reached);
    ::raise(SIGKILL);
  }
  int status = 0;
  ::waitpid(tracer, &status, 0);
  return WIFSIGNALED(status) ? 0 : WEXITSTATUS(status);
}

class TracerDeath : public testing::TestWithParam<int> {
 protected:
  Point point() const { return static_cast<Point>(GetParam()); }
};

TEST_P(TracerDeath, VictimRunsOnAsItWas) {
  const Victim victim{check_itself};
  ASSERT_TRUE(victim.makes_rounds(1));
  const CallPlan plan = must_plan(victim);
  ASSERT_TRUE(plan.sites.closes_result());
  const std::size_t descriptors = victim.descriptors();
  for (int i = 0; i < 20; ++i) {
    ASSERT_EQ(tracer_that_ends(victim.pid(), plan, point()), 0);
    ASSERT_TRUE(victim.makes_rounds(1));
  }
  EXPECT_TRUE(victim.makes_rounds(1));
  EXPECT_EQ(victim.board().faults, 0U);
  EXPECT_EQ(victim.descriptors(), descriptors);
}

TEST_P(TracerDeath, WithoutTheCodeToCloseItADescriptorMayBeLeftAndNothingElse) {
  const Victim victim{check_itself};
  ASSERT_TRUE(victim.makes_rounds(1));
  CallPlan plan = must_plan(victim);
  plan.sites.pass_result = 0;
  ASSERT_EQ(tracer_that_ends(victim.pid(), plan, point()), 0);
  EXPECT_TRUE(victim.makes_rounds(3));
  EXPECT_EQ(victim.board().faults, 0U);
  const bool between = point() >= Point::kCallSet && point() <= Point::kCallDone;
  EXPECT_EQ(victim.userfaultfds(), between ? 1U : 0U);
}

TEST_P(TracerDeath, PollRestartsAndSleepIsInterruptedAtMost) {
  for (const bool poll : {true, false}) {
    Victim victim{[poll](VictimBoard& board) {
      timespec time{0, 300000000};
      const auto begin = std::chrono::steady_clock::now();
      const long result = poll ? ::syscall(SYS_ppoll, nullptr, 0, &time, nullptr, 8)
                               : ::syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &time, &time);
      board.error = result == 0 ? 0 : errno;
      if (board.error == EINTR) ::nanosleep(&time, nullptr);
      const auto spent = std::chrono::steady_clock::now() - begin;
      board.rounds = static_cast<u64>(std::chrono::duration_cast<std::chrono::milliseconds>(spent).count());
    }};
    ASSERT_TRUE(victim.reaches_state('S'));
    const CallPlan plan = must_plan(victim);
    ASSERT_EQ(tracer_that_ends(victim.pid(), plan, point()), 0);
    EXPECT_EQ(victim.exit_code(), 0);
    const bool own_way_back = point() != Point::kPrepared && point() != Point::kRestored;
    EXPECT_EQ(victim.board().error, !poll && own_way_back ? EINTR : 0);
    EXPECT_GE(victim.board().rounds, 299U);
    EXPECT_LT(victim.board().rounds, 2000U);
  }
}

INSTANTIATE_TEST_SUITE_P(Points, TracerDeath, testing::Range(0, static_cast<int>(Point::kRestored) + 1));

bool is_traced(pid_t pid) {
  const auto status = read_text_file(fmt::format("/proc/{}/status", pid), kMiB);
  return status && status->find("TracerPid:\t0\n") == std::string::npos;
}

void spin_for(std::chrono::microseconds time) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < end) {
  }
}

std::chrono::microseconds random_moment() {
  static std::mt19937 random{20240229};
  return std::chrono::microseconds{std::uniform_int_distribution<>{0, 400}(random)};
}

TEST(AttachChildDeath, AtRandomInstants) {
  const Victim victim{check_itself};
  ASSERT_TRUE(victim.makes_rounds(1));
  const CallPlan calls = must_plan(victim);
  const std::size_t descriptors = victim.descriptors();
  const UniqueFd handle{static_cast<int>(::syscall(SYS_pidfd_open, victim.pid(), 0))};
  constexpr int kDeaths = 120;
  int finished = 0;
  for (int i = 0; i < kDeaths; ++i) {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    const UniqueFd link{ends[0]};
    UniqueFd child_end{ends[1]};
    const AttachPlan plan{.target = victim.pid(),
                          .target_handle = handle.get(),
                          .device = -1,
                          .link = child_end.get(),
                          .calls = calls};
    pid_t child = -1;
    {
      const SignalBlock block;
      child = ::fork();
      if (child == 0) run_attach_child(plan);
    }
    child_end.reset();
    ::sigqueue(victim.pid(), kCountedSignal, {});
    for (int tries = 0; tries < 100 && !is_traced(victim.pid()); ++tries) spin_for(10us);
    spin_for(random_moment());
    ::kill(child, SIGKILL);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    char report[sizeof(AttachOutcome)];
    if (::recv(link.get(), report, sizeof report, MSG_DONTWAIT) > 0) ++finished;
    ASSERT_TRUE(victim.alive()) << "after death " << i;
  }
  EXPECT_TRUE(victim.makes_rounds(3));
  EXPECT_EQ(victim.board().faults, 0U);
  EXPECT_EQ(victim.board().signals, static_cast<u64>(kDeaths));
  EXPECT_EQ(victim.descriptors(), descriptors);
  RecordProperty("finished_before_death", finished);
  RecordProperty("interrupted_sleeps", std::to_string(victim.board().interrupted));
  // Otherwise it would have proved nothing.
  EXPECT_LT(finished, kDeaths);
}

/// The only child of a process, or 0.
pid_t child_of(pid_t pid) {
  const auto text = read_text_file(fmt::format("/proc/{0}/task/{0}/children", pid), kKiB);
  pid_t child = 0;
  if (text) std::istringstream{*text} >> child;
  return child;
}

TEST(CallerDeath, WithOrWithoutItsAttachChild) {
  const Victim victim{check_itself};
  ASSERT_TRUE(victim.makes_rounds(1));
  const std::size_t descriptors = victim.descriptors();
  constexpr int kDeaths = 20;
  for (int i = 0; i < kDeaths; ++i) {
    const Victim caller{[&](VictimBoard& board) {
      for (;;) {
        if (!take_userfaultfd(victim.pid())) ++board.faults;
        ++board.rounds;
      }
    }};
    ::sigqueue(victim.pid(), kCountedSignal, {});
    for (int tries = 0; tries < 5000 && !is_traced(victim.pid()); ++tries) spin_for(10us);
    spin_for(random_moment());
    const pid_t child = child_of(caller.pid());
    if (i % 3 != 0) ::kill(caller.pid(), SIGKILL);
    if (i % 3 != 1 && child > 0) ::kill(child, SIGKILL);
    ASSERT_TRUE(victim.alive()) << "after death " << i;
    // Without its parent it works to its end.
    for (int tries = 0; tries < 1000 && i % 3 == 1 && is_traced(victim.pid()); ++tries) {
      std::this_thread::sleep_for(100us);
    }
  }
  for (int tries = 0; tries < 1000 && is_traced(victim.pid()); ++tries) std::this_thread::sleep_for(1ms);
  EXPECT_TRUE(victim.makes_rounds(3));
  EXPECT_EQ(victim.board().faults, 0U);
  EXPECT_EQ(victim.board().signals, static_cast<u64>(kDeaths));
  EXPECT_EQ(victim.descriptors(), descriptors);
  EXPECT_TRUE(take_userfaultfd(victim.pid()));
}

}  // namespace
}  // namespace vmsieve
