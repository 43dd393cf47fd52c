// SPDX-License-Identifier: Apache-2.0
// What take_userfaultfd says when it cannot, and that the process runs on then.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/qemu/victim.h"
#include "vmsieve/qemu/remote_userfaultfd.h"

namespace vmsieve {
namespace {

using namespace std::chrono_literals;
using test::Victim;
using test::VictimBoard;

void expect_error(pid_t pid, ErrorKind kind, const std::string& words) {
  const auto taken = take_userfaultfd(pid);
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().kind(), kind) << taken.error().message();
  EXPECT_THAT(taken.error().message(), testing::HasSubstr(words));
}

void sleep_forever(VictimBoard& board) {
  board.rounds = 1;
  for (;;) ::pause();
}

TEST(RemoteUserfaultfdRefusal, ProcessTracedByAnotherNamesTheTracer) {
  const Victim victim{sleep_forever};
  const Victim tracer{[&](VictimBoard& board) {
    board.result = ::ptrace(PTRACE_SEIZE, victim.pid(), nullptr, nullptr);
    board.rounds = 1;
    for (;;) ::pause();
  }};
  for (int i = 0; i < 1000 && tracer.board().rounds == 0; ++i) std::this_thread::sleep_for(1ms);
  ASSERT_EQ(tracer.board().result, 0);
  expect_error(victim.pid(), ErrorKind::kBusy, fmt::format("traced by process {}", tracer.pid()));
  EXPECT_TRUE(victim.alive());
}

TEST(RemoteUserfaultfdRefusal, ProcessThatIsGone) {
  const pid_t gone = ::fork();
  if (gone == 0) ::_exit(0);
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(gone), &info, WEXITED | WNOWAIT), 0);
  // Not reaped yet.
  expect_error(gone, ErrorKind::kVanished, std::to_string(gone));
  ::waitpid(gone, nullptr, 0);
  expect_error(gone, ErrorKind::kVanished, "is gone");
}

TEST(RemoteUserfaultfdRefusal, ProcessKilledMeanwhile) {
  for (int i = 0; i < 12; ++i) {
    const Victim victim{[](VictimBoard& board) {
      for (;;) ++board.rounds;
    }};
    ASSERT_TRUE(victim.makes_rounds(1));
    std::thread killer{[&] {
      std::this_thread::sleep_for(std::chrono::microseconds{i * 500});
      ::kill(victim.pid(), SIGKILL);
    }};
    for (;;) {
      const auto taken = take_userfaultfd(victim.pid());
      if (taken) continue;
      EXPECT_EQ(taken.error().kind(), ErrorKind::kVanished) << taken.error().message();
      break;
    }
    killer.join();
  }
}

TEST(RemoteUserfaultfdRefusal, UninterruptibleSleepIsATimeoutThatLetsGo) {
  // The parent of a CLONE_VFORK sleeps so until its child ends.
  Victim victim{[](VictimBoard& board) {
    alignas(16) static char stack[65536];
    const auto wait_for_order = [](void* argument) {
      const auto* shared = static_cast<VictimBoard*>(argument);
      while (shared->order == 0) ::usleep(1000);
      return 0;
    };
    const pid_t child =
        ::clone(wait_for_order, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, &board);
    ::waitpid(child, nullptr, 0);
    ::_exit(17);
  }};
  ASSERT_TRUE(victim.reaches_state('D'));
  expect_error(victim.pid(), ErrorKind::kTimeout, "did not stop within 2 s");
  EXPECT_EQ(victim.state(), 'D');
  victim.board().order = 1;
  EXPECT_EQ(victim.exit_code(), 17);
}

void forbid_userfaultfd(u32 action) {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, action),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{4, code};
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

TEST(RemoteUserfaultfdRefusal, RefusedByTheOtherProcessesFilter) {
  const struct {
    u32 action;
    ErrorKind kind;
    const char* words;
  } cases[] = {{SECCOMP_RET_ERRNO | EPERM, ErrorKind::kPermission, "may not make a userfaultfd"},
               {SECCOMP_RET_ERRNO | ENOSYS, ErrorKind::kUnsupported, "no userfaultfd"},
               {SECCOMP_RET_TRAP, ErrorKind::kIo, "undone"}};
  for (const auto& one : cases) {
    const Victim victim{[&](VictimBoard& board) {
      forbid_userfaultfd(one.action);
      for (;;) {
        if (!test::registers_survive(1000)) ++board.faults;
        ++board.rounds;
      }
    }};
    ASSERT_TRUE(victim.makes_rounds(1));
    expect_error(victim.pid(), one.kind, one.words);
    EXPECT_TRUE(victim.makes_rounds(10));
    EXPECT_EQ(victim.board().faults, 0U);
  }
}

constexpr uid_t kNobody = 65534;

TEST(RemoteUserfaultfdRefusal, ProcessWithoutTheRightToMakeOne) {
  const auto allowed = read_text_file("/proc/sys/vm/unprivileged_userfaultfd", kKiB);
  if (::geteuid() != 0 || (allowed && allowed->front() != '0'))
    GTEST_SKIP() << "everybody has the right here";
  const Victim victim{[](VictimBoard& board) {
    if (::setresgid(kNobody, kNobody, kNobody) != 0 || ::setresuid(kNobody, kNobody, kNobody) != 0)
      ::_exit(1);
    for (;;) ++board.rounds;
  }};
  ASSERT_TRUE(victim.makes_rounds(1));
  expect_error(victim.pid(), ErrorKind::kPermission, "vm.unprivileged_userfaultfd");
  EXPECT_TRUE(victim.makes_rounds(100));
}

TEST(RemoteUserfaultfdRefusal, WithoutTheRightToTrace) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give up its rights";
  const Victim victim{sleep_forever};
  Victim stranger{[&](VictimBoard&) {
    if (::setresgid(kNobody, kNobody, kNobody) != 0 || ::setresuid(kNobody, kNobody, kNobody) != 0)
      ::_exit(1);
    const auto taken = take_userfaultfd(victim.pid());
    ::_exit(!taken && taken.error().kind() == ErrorKind::kPermission ? 0 : 2);
  }};
  EXPECT_EQ(stranger.exit_code(), 0);
}

}  // namespace
}  // namespace vmsieve
