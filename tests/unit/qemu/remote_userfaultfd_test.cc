// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/remote_userfaultfd.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>
#include <chrono>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/qemu/real_qemu.h"
#include "unit/qemu/victim.h"

namespace vmsieve {
namespace {

using namespace std::chrono_literals;
using test::Victim;
using test::VictimBoard;

bool negotiate(const UniqueFd& fd, u64 features) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = features;
  return ::ioctl(fd.get(), UFFDIO_API, &api) == 0;
}

bool protect(const UniqueFd& fd, u64 address, u64 mode) {
  uffdio_writeprotect order{{address, kPageSize}, mode};
  return ::ioctl(fd.get(), UFFDIO_WRITEPROTECT, &order) == 0;
}

void sleep_forever(VictimBoard& board) {
  board.rounds = 1;
  for (;;) ::pause();
}

TEST(RemoteUserfaultfd, CatchesAWriteOfTheOtherProcess) {
  const Victim victim{[](VictimBoard& board) {
    void* page = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    auto* word = static_cast<volatile u64*>(page);
    *word = 1;
    board.address = reinterpret_cast<u64>(page);
    board.rounds = 1;
    while (board.order == 0) ::usleep(100);
    *word = 2;
    board.result = static_cast<i64>(*word);
    for (;;) ::pause();
  }};
  ASSERT_TRUE(victim.makes_rounds(victim.board().rounds == 0 ? 1 : 0));
  const auto taken = take_userfaultfd(victim.pid());
  ASSERT_TRUE(taken) << taken.error().message();
  EXPECT_EQ(::fcntl(taken->get(), F_GETFD), FD_CLOEXEC);
  ASSERT_TRUE(negotiate(*taken, UFFD_FEATURE_PAGEFAULT_FLAG_WP));
  const u64 address = victim.board().address;
  uffdio_register range{};
  range.range = {address, kPageSize};
  range.mode = UFFDIO_REGISTER_MODE_WP;
  ASSERT_EQ(::ioctl(taken->get(), UFFDIO_REGISTER, &range), 0);
  ASSERT_TRUE(protect(*taken, address, UFFDIO_WRITEPROTECT_MODE_WP));

  victim.board().order = 1;
  pollfd poll{taken->get(), POLLIN, 0};
  ASSERT_EQ(::poll(&poll, 1, 5000), 1);
  uffd_msg message{};
  ASSERT_EQ(::read(taken->get(), &message, sizeof message), static_cast<ssize_t>(sizeof message));
  EXPECT_EQ(message.event, UFFD_EVENT_PAGEFAULT);
  EXPECT_EQ(message.arg.pagefault.address & ~(kPageSize - 1), address);
  EXPECT_EQ(victim.board().result, 0);
  ASSERT_TRUE(protect(*taken, address, 0));
  for (int i = 0; i < 2000 && victim.board().result == 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(victim.board().result, 2);
}

TEST(RemoteUserfaultfd, LeavesNoDescriptorThere) {
  const Victim victim{sleep_forever};
  const std::size_t before = victim.descriptors();
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(take_userfaultfd(victim.pid()));
  EXPECT_EQ(victim.descriptors(), before);
}

TEST(RemoteUserfaultfd, LeavesNoChildAndNoDescriptorHere) {
  const Victim victim{sleep_forever};
  const UniqueFd next_before{::dup(0)};
  const int number = next_before.get();
  ASSERT_TRUE(take_userfaultfd(victim.pid()));
  const UniqueFd next_after{::dup(0)};
  EXPECT_EQ(next_after.get(), number + 1);
  // The victim is the only child left.
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), 0);
  EXPECT_TRUE(victim.alive());
}

/// How often the process's main thread has stopped or slept.
u64 pauses(const Victim& victim) {
  const auto status = read_text_file(fmt::format("/proc/{}/status", victim.pid()), kMiB);
  if (!status) return 0;
  const std::string name = "\nvoluntary_ctxt_switches:\t";
  return std::stoull(status->substr(status->find(name) + name.size()));
}

TEST(RemoteUserfaultfd, StopsTheThreadFiveTimesAtMost) {
  // Each stop costs the time for two processes to be scheduled, which a busy machine makes long: time says
  // less.
  const Victim victim{[](VictimBoard& board) {
    for (;;) ++board.rounds;
  }};
  ASSERT_TRUE(victim.makes_rounds(1));
  const u64 before = pauses(victim);
  ASSERT_TRUE(take_userfaultfd(victim.pid()));
  EXPECT_LE(pauses(victim) - before, 5U);
}

/// A system call that waits; what it says when nobody disturbs it; and how long it takes.
struct Wait {
  const char* label;
  long (*call)();
  long result;
  int error;
};

void PrintTo(const Wait& wait, std::ostream* out) { *out << wait.label; }

constexpr timespec kWaitTime{0, 500000000};

const Wait kWaits[] = {
    {"ppoll",
     [] {
       timespec time = kWaitTime;
       sigset_t none;
       ::sigemptyset(&none);
       return ::syscall(SYS_ppoll, nullptr, 0, &time, &none, 8);
     },
     0, 0},
    {"poll", [] { return ::syscall(SYS_poll, nullptr, 0, 500); }, 0, 0},
    {"nanosleep",
     [] {
       timespec time = kWaitTime;
       return ::syscall(SYS_nanosleep, &time, nullptr);
     },
     0, 0},
    {"clock_nanosleep",
     [] {
       timespec time = kWaitTime;
       return ::syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &time, nullptr);
     },
     0, 0},
    {"clock_nanosleep_absolute",
     [] {
       timespec time{};
       ::clock_gettime(CLOCK_MONOTONIC, &time);
       time.tv_sec += (time.tv_nsec + kWaitTime.tv_nsec) / 1000000000;
       time.tv_nsec = (time.tv_nsec + kWaitTime.tv_nsec) % 1000000000;
       return ::syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr);
     },
     0, 0},
    {"futex",
     [] {
       u32 word = 7;
       return ::syscall(SYS_futex, &word, FUTEX_WAIT, 7, &kWaitTime, nullptr, 0);
     },
     -1, ETIMEDOUT},
    {"read",
     [] {
       int ends[2];
       if (::pipe(ends) != 0) return -2L;
       if (::fork() == 0) {
         ::nanosleep(&kWaitTime, nullptr);
         (void)!::write(ends[1], "abc", 3);
         ::_exit(0);
       }
       char bytes[8];
       return static_cast<long>(::syscall(SYS_read, ends[0], bytes, sizeof bytes));
     },
     3, 0},
    {"sigsuspend",
     [] {
       struct sigaction action {};
       action.sa_handler = [](int) {};
       ::sigaction(SIGALRM, &action, nullptr);
       const itimerval timer{{0, 0}, {0, kWaitTime.tv_nsec / 1000}};
       sigset_t alarm;
       ::sigemptyset(&alarm);
       ::sigaddset(&alarm, SIGALRM);
       ::sigprocmask(SIG_BLOCK, &alarm, nullptr);
       ::setitimer(ITIMER_REAL, &timer, nullptr);
       sigset_t none;
       ::sigemptyset(&none);
       return static_cast<long>(::sigsuspend(&none));
     },
     -1, EINTR},
};

class InterruptedCall : public testing::TestWithParam<Wait> {};

/// How often the wait was interrupted before it ended.
int interrupt(const Wait& wait) {
  Victim victim{[&](VictimBoard& board) {
    const auto begin = std::chrono::steady_clock::now();
    errno = 0;
    board.result = wait.call();
    board.error = errno;
    const auto time = std::chrono::steady_clock::now() - begin;
    board.rounds = static_cast<u64>(std::chrono::duration_cast<std::chrono::milliseconds>(time).count());
  }};
  EXPECT_TRUE(victim.reaches_state('S'));
  const VictimBoard& board = victim.board();
  int interruptions = 0;
  const auto begin = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begin < 200ms) {
    const auto taken = take_userfaultfd(victim.pid());
    if (!taken && taken.error().kind() == ErrorKind::kVanished) break;
    EXPECT_TRUE(taken) << taken.error().message();
    if (board.rounds == 0) ++interruptions;
  }
  EXPECT_EQ(victim.exit_code(), 0);
  EXPECT_EQ(board.result, wait.result);
  EXPECT_EQ(board.error, wait.error);
  EXPECT_GE(board.rounds, 498U);
  EXPECT_LT(board.rounds, 3000U);
  return interruptions;
}

TEST_P(InterruptedCall, GoesOn) {
  // On a busy machine one attach may take longer than the whole wait.
  int interruptions = 0;
  for (int i = 0; i < 10 && interruptions == 0; ++i) interruptions = interrupt(GetParam());
  EXPECT_GT(interruptions, 0);
}

INSTANTIATE_TEST_SUITE_P(Calls, InterruptedCall, testing::ValuesIn(kWaits),
                         [](const auto& instance) { return std::string{instance.param.label}; });

TEST(RemoteUserfaultfd, RegistersAreAsTheyWere) {
  const Victim victim{[](VictimBoard& board) {
    for (;;) {
      if (!test::registers_survive(200000)) ++board.faults;
      ++board.rounds;
    }
  }};
  ASSERT_TRUE(victim.makes_rounds(1));
  for (int i = 0; i < 30; ++i) ASSERT_TRUE(take_userfaultfd(victim.pid()));
  EXPECT_TRUE(victim.makes_rounds(2));
  EXPECT_EQ(victim.board().faults, 0U);
}

std::atomic<u64>* signal_count = nullptr;

void count_signals(VictimBoard& board, int signal) {
  signal_count = &board.signals;
  struct sigaction action {};
  action.sa_handler = [](int) { ++*signal_count; };
  action.sa_flags = SA_RESTART;
  ::sigaction(signal, &action, nullptr);
}

TEST(RemoteUserfaultfd, EverySignalMeanwhileIsDeliveredOnce) {
  // Queued signals are counted, and their order of arrival covers all moments of an attach.
  const int signal = SIGRTMIN + 3;
  const Victim victim{[signal](VictimBoard& board) {
    count_signals(board, signal);
    for (;;) {
      if (!test::registers_survive(1000)) ++board.faults;
      ++board.rounds;
    }
  }};
  ASSERT_TRUE(victim.makes_rounds(1));
  u64 sent = 0;
  std::atomic<bool> done{false};
  std::thread sender{[&] {
    while (!done) {
      if (::sigqueue(victim.pid(), signal, {}) == 0) ++sent;
      std::this_thread::sleep_for(20us);
    }
  }};
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(take_userfaultfd(victim.pid()));
  done = true;
  sender.join();
  EXPECT_TRUE(victim.makes_rounds(3));
  EXPECT_EQ(victim.board().signals, sent);
  EXPECT_GT(sent, 100U);
  EXPECT_EQ(victim.board().faults, 0U);
}

TEST(RemoteUserfaultfd, StoppedProcessStaysStopped) {
  const Victim victim{[](VictimBoard& board) {
    for (;;) ++board.rounds;
  }};
  ASSERT_TRUE(victim.makes_rounds(1));
  ::kill(victim.pid(), SIGSTOP);
  ASSERT_TRUE(victim.reaches_state('T'));
  const u64 rounds = victim.board().rounds;
  for (int i = 0; i < 20; ++i) {
    const auto taken = take_userfaultfd(victim.pid());
    ASSERT_TRUE(taken) << taken.error().message();
    EXPECT_TRUE(victim.reaches_state('T'));
  }
  EXPECT_EQ(victim.board().rounds, rounds);
  ::kill(victim.pid(), SIGCONT);
  EXPECT_TRUE(victim.makes_rounds(1000));
}

TEST(RemoteUserfaultfd, StopsAndContinuesMeanwhile) {
  const Victim victim{[](VictimBoard& board) {
    for (;;) {
      if (!test::registers_survive(1000)) ++board.faults;
      ++board.rounds;
    }
  }};
  ASSERT_TRUE(victim.makes_rounds(1));
  std::atomic<bool> done{false};
  std::thread sender{[&] {
    while (!done) {
      ::kill(victim.pid(), SIGSTOP);
      std::this_thread::sleep_for(150us);
      ::kill(victim.pid(), SIGCONT);
      std::this_thread::sleep_for(100us);
    }
  }};
  for (int i = 0; i < 25; ++i) {
    const auto taken = take_userfaultfd(victim.pid());
    EXPECT_TRUE(taken) << taken.error().message();
  }
  done = true;
  sender.join();
  EXPECT_TRUE(victim.makes_rounds(10));
  EXPECT_EQ(victim.board().faults, 0U);
}

class UserfaultfdOfQemu : public testing::TestWithParam<test::QemuProgram> {};

TEST_P(UserfaultfdOfQemu, SandboxedQemuRunsOn) {
  test::RealQemu qemu{GetParam().path,
                      {"-M", "q35", "-m", "128", "-sandbox",
                       "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"}};
  ASSERT_TRUE(qemu.running()) << qemu.complaint();
  const auto monitor = test::must_connect(qemu.monitor());
  for (int i = 0; i < 10; ++i) {
    const auto taken = take_userfaultfd(qemu.pid());
    ASSERT_TRUE(taken) << taken.error().message();
    EXPECT_TRUE(negotiate(*taken, 0));
    if (i % 10 == 0) {
      ASSERT_EQ(test::status_of(qemu.second_monitor()), "running");
    }
  }
  EXPECT_TRUE(monitor->execute("query-status"));
}

INSTANTIATE_TEST_SUITE_P(Qemu, UserfaultfdOfQemu, testing::ValuesIn(test::qemu_programs()),
                         [](const auto& instance) { return instance.param.label; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(UserfaultfdOfQemu);

}  // namespace
}  // namespace vmsieve
