// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/pause_guard.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cstring>
#include <filesystem>
#include <functional>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/qemu/real_qemu.h"
#include "vmsieve/qemu/machine.h"

namespace vmsieve {
namespace {

using namespace std::chrono_literals;
using test::RealQemu;

class Guard : public testing::TestWithParam<test::QemuProgram> {
 protected:
  void SetUp() override {
    qemu_ = std::make_unique<RealQemu>(GetParam().path, std::vector<std::string>{"-M", "q35", "-m", "128"});
    ASSERT_TRUE(qemu_->running()) << qemu_->complaint();
  }

  std::string status() const { return test::status_of(qemu_->second_monitor()); }

  /// "running" within two seconds?
  bool is_resumed() const {
    for (int i = 0; i < 200; ++i) {
      if (status() == "running") return true;
      std::this_thread::sleep_for(10ms);
    }
    return false;
  }

  /// A process that works on the guest and is then killed with SIGKILL; `work` says when it has reached the
  /// point by calling its argument, which does not return.
  void kill_at(const std::function<void(QmpClient&, const std::function<void()>& here)>& work) {
    int ready[2];
    ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    const pid_t victim = ::fork();
    if (victim == 0) {
      auto qmp = QmpClient::connect(qemu_->monitor());
      if (!qmp) ::_exit(1);
      work(**qmp, [&] {
        (void)!::write(ready[1], "x", 1);
        for (;;) ::pause();
      });
      ::_exit(2);
    }
    ::close(ready[1]);
    char byte = 0;
    EXPECT_EQ(::read(ready[0], &byte, 1), 1) << "the victim did not reach its point";
    ::close(ready[0]);
    ::kill(victim, SIGKILL);
    ::waitpid(victim, nullptr, 0);
  }

  std::unique_ptr<RealQemu> qemu_;
};

bool exists(pid_t pid) { return ::kill(pid, 0) == 0; }

TEST_P(Guard, StopsAndResumes) {
  const auto qmp = test::must_connect(qemu_->monitor());
  const auto guard = PauseGuard::make(*qmp);
  ASSERT_TRUE(guard) << guard.error().message();
  ASSERT_TRUE((*guard)->stop());
  EXPECT_TRUE((*guard)->was_running());
  EXPECT_EQ(status(), "paused");
  ASSERT_TRUE((*guard)->resume());
  EXPECT_EQ(status(), "running");
  ASSERT_TRUE((*guard)->stop());
  EXPECT_EQ(status(), "paused");
  ASSERT_TRUE((*guard)->resume());
  EXPECT_EQ(status(), "running");
}

TEST_P(Guard, DroppedWhileStoppedResumesAndLeavesNoProcess) {
  const auto qmp = test::must_connect(qemu_->monitor());
  pid_t child = 0;
  {
    const auto guard = PauseGuard::make(*qmp);
    ASSERT_TRUE(guard);
    child = (*guard)->child();
    ASSERT_TRUE((*guard)->stop());
  }
  EXPECT_EQ(status(), "running");
  EXPECT_FALSE(exists(child));
  EXPECT_EQ(::waitpid(child, nullptr, WNOHANG), -1);
}

TEST_P(Guard, GuestPausedByItsOwnerStaysPaused) {
  const auto qmp = test::must_connect(qemu_->monitor());
  ASSERT_TRUE(qmp->execute("stop"));
  {
    const auto guard = PauseGuard::make(*qmp);
    ASSERT_TRUE(guard);
    ASSERT_TRUE((*guard)->stop());
    EXPECT_FALSE((*guard)->was_running());
    ASSERT_TRUE((*guard)->resume());
  }
  EXPECT_EQ(status(), "paused");
}

TEST_P(Guard, ChildKeepsOnlyItsDescriptorsAndItsOwnSession) {
  const auto qmp = test::must_connect(qemu_->monitor());
  const auto guard = PauseGuard::make(*qmp);
  ASSERT_TRUE(guard);
  ASSERT_TRUE((*guard)->stop());  // the child has answered, so it is ready
  const std::filesystem::path folder = fmt::format("/proc/{}/fd", (*guard)->child());
  const auto count = std::distance(std::filesystem::directory_iterator{folder}, {});
  EXPECT_EQ(count, 3);
  EXPECT_EQ(::getsid((*guard)->child()), (*guard)->child());
}

TEST_P(Guard, ChildIgnoresSignalsThatEndOthers) {
  const auto qmp = test::must_connect(qemu_->monitor());
  const auto guard = PauseGuard::make(*qmp);
  ASSERT_TRUE(guard);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGQUIT, SIGUSR1})
    ::kill((*guard)->child(), signal);
  std::this_thread::sleep_for(20ms);
  ASSERT_TRUE((*guard)->stop());
  ASSERT_TRUE((*guard)->resume());
}

TEST_P(Guard, WithoutItsChildTheGuestIsNotStopped) {
  const auto qmp = test::must_connect(qemu_->monitor());
  const auto guard = PauseGuard::make(*qmp);
  ASSERT_TRUE(guard);
  ::kill((*guard)->child(), SIGKILL);
  siginfo_t info{};
  ::waitid(P_PID, static_cast<id_t>((*guard)->child()), &info, WEXITED | WNOWAIT);
  const auto stopped = (*guard)->stop();
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().kind(), ErrorKind::kVanished);
  EXPECT_EQ(status(), "running");
}

TEST_P(Guard, ChildThatDiesDuringThePauseDoesNotHinderResume) {
  const auto qmp = test::must_connect(qemu_->monitor());
  {
    const auto guard = PauseGuard::make(*qmp);
    ASSERT_TRUE(guard);
    ASSERT_TRUE((*guard)->stop());
    ::kill((*guard)->child(), SIGKILL);
    ASSERT_TRUE((*guard)->resume());
  }
  EXPECT_EQ(status(), "running");
}

TEST_P(Guard, QemuThatDiesDuringThePauseIsAnErrorNotAHang) {
  const auto qmp = test::must_connect(qemu_->monitor());
  auto guard = PauseGuard::make(*qmp);
  ASSERT_TRUE(guard);
  ASSERT_TRUE((*guard)->stop());
  qemu_->kill();
  const auto resumed = (*guard)->resume();
  ASSERT_FALSE(resumed);
  EXPECT_EQ(resumed.error().kind(), ErrorKind::kVanished);
  const pid_t child = (*guard)->child();
  guard->reset();
  EXPECT_FALSE(exists(child));
}

TEST_P(Guard, KilledWhileStopped) {
  kill_at([](QmpClient& qmp, const auto& here) {
    auto guard = PauseGuard::make(qmp);
    if (guard && (*guard)->stop()) here();
  });
  EXPECT_TRUE(is_resumed());
}

TEST_P(Guard, KilledWithoutHavingStopped) {
  pid_t child = 0;
  int numbers[2];
  ASSERT_EQ(::pipe2(numbers, O_CLOEXEC), 0);
  kill_at([&](QmpClient& qmp, const auto& here) {
    auto guard = PauseGuard::make(qmp);
    if (!guard) return;
    child = (*guard)->child();
    (void)!::write(numbers[1], &child, sizeof child);
    here();
  });
  ASSERT_EQ(::read(numbers[0], &child, sizeof child), static_cast<ssize_t>(sizeof child));
  ::close(numbers[0]);
  ::close(numbers[1]);
  for (int i = 0; i < 200 && std::filesystem::exists(fmt::format("/proc/{}/fd/0", child)); ++i) {
    std::this_thread::sleep_for(10ms);
  }
  EXPECT_EQ(status(), "running");
}

TEST_P(Guard, KilledBetweenStopAndItsReply) {
  kill_at([](QmpClient& qmp, const auto& here) {
    auto guard = PauseGuard::make(qmp);
    if (!guard || !(*guard)->stop() || !(*guard)->resume() || !(*guard)->stop()) return;
    // The guard is armed; what QEMU has not answered yet is as good as what was not read yet.
    const std::string again = "{\"execute\":\"cont\"}\r\n{\"execute\":\"stop\",\"id\":77}\r\n";
    if (::send(qmp.socket(), again.data(), again.size(), MSG_NOSIGNAL) > 0) here();
  });
  EXPECT_TRUE(is_resumed());
}

TEST_P(Guard, KilledInTheMiddleOfSendingACommand) {
  for (const char* torn :
       {"{\"execute\":\"xen-save-dev", "{\"execute\":", "{\"execute\":\"query-status\",\"arguments\":{"}) {
    kill_at([torn](QmpClient& qmp, const auto& here) {
      auto guard = PauseGuard::make(qmp);
      if (!guard || !(*guard)->stop()) return;
      if (::send(qmp.socket(), torn, std::strlen(torn), MSG_NOSIGNAL) > 0) here();
    });
    EXPECT_TRUE(is_resumed()) << torn;
  }
}

TEST_P(Guard, KilledWhileALongCommandRuns) {
  kill_at([](QmpClient& qmp, const auto& here) {
    auto guard = PauseGuard::make(qmp);
    if (!guard || !(*guard)->stop()) return;
    // Many in a row keep QEMU busy well beyond the death of the process that asked.
    std::string commands;
    for (int i = 0; i < 8; ++i) {
      commands +=
          "{\"execute\":\"xen-save-devices-state\",\"arguments\":{\"filename\":\"/dev/"
          "null\",\"live\":false}}\r\n";
    }
    if (::send(qmp.socket(), commands.data(), commands.size(), MSG_NOSIGNAL) > 0) here();
  });
  EXPECT_TRUE(is_resumed());
}

TEST_P(Guard, KilledAtRandomMoments) {
  for (int round = 0; round < 20; ++round) {
    const pid_t victim = ::fork();
    if (victim == 0) {
      auto qmp = QmpClient::connect(qemu_->monitor());
      for (;;) {
        if (!qmp) ::_exit(1);
        auto guard = PauseGuard::make(**qmp);
        if (!guard || !(*guard)->stop()) ::_exit(1);
        (void)save_device_state(**qmp).ok();
        if (!(*guard)->resume()) ::_exit(1);
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds{3000 + round * 1700});
    ::kill(victim, SIGKILL);
    int ended = 0;
    ::waitpid(victim, &ended, 0);
    EXPECT_TRUE(WIFSIGNALED(ended)) << "the victim failed by itself in round " << round;
    ASSERT_TRUE(is_resumed()) << "round " << round;
  }
}

TEST_P(Guard, ConnectsAnewWhenItsConnectionIsDead) {
  kill_at([](QmpClient& qmp, const auto& here) {
    auto guard = PauseGuard::make(qmp);
    if (!guard || !(*guard)->stop()) return;
    ::shutdown(qmp.socket(), SHUT_RDWR);
    here();
  });
  EXPECT_TRUE(is_resumed());
}

/// How a process ended that `work` keeps busy: the signal, 0 when it ended by itself, -1 when it has not
/// ended within `patience`; it is killed then.
int end_of(const std::string& monitor, std::chrono::milliseconds patience,
           const std::function<void(QmpClient&)>& work) {
  const pid_t worker = ::fork();
  if (worker == 0) {
    auto qmp = QmpClient::connect(monitor);
    if (!qmp) ::_exit(1);
    work(**qmp);
    ::_exit(0);
  }
  int ended = 0;
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (::waitpid(worker, &ended, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(1ms);
      continue;
    }
    ::kill(worker, SIGKILL);
    ::waitpid(worker, nullptr, 0);
    return -1;
  }
  return WIFSIGNALED(ended) ? WTERMSIG(ended) : 0;
}

TEST_P(Guard, ProcessThatBeganToBeatAndFellSilentIsKilled) {
  const auto begin = std::chrono::steady_clock::now();
  const int signal = end_of(qemu_->monitor(), 5s, [](QmpClient& qmp) {
    auto guard = PauseGuard::make(qmp, 200ms);
    if (!guard) return;
    (*guard)->beat();
    ::raise(SIGSTOP);
  });
  EXPECT_EQ(signal, SIGKILL);
  EXPECT_GE(std::chrono::steady_clock::now() - begin, 200ms);
  EXPECT_EQ(status(), "running");
}

TEST_P(Guard, ProcessThatFellSilentWhileTheGuestIsStoppedIsKilledAndTheGuestRuns) {
  const int signal = end_of(qemu_->monitor(), 5s, [](QmpClient& qmp) {
    auto guard = PauseGuard::make(qmp, 200ms);
    if (!guard) return;
    (*guard)->beat();
    if ((*guard)->stop()) ::raise(SIGSTOP);
  });
  EXPECT_EQ(signal, SIGKILL);
  EXPECT_TRUE(is_resumed());
}

TEST_P(Guard, ProcessThatBeatsLives) {
  const int signal = end_of(qemu_->monitor(), 5s, [](QmpClient& qmp) {
    auto guard = PauseGuard::make(qmp, 300ms);
    if (!guard) ::abort();
    for (int i = 0; i < 20; ++i) {
      (*guard)->beat();
      std::this_thread::sleep_for(40ms);
    }
  });
  EXPECT_EQ(signal, 0);
}

TEST_P(Guard, ProcessThatNeverBeatIsNotKilledForItsSilence) {
  const int signal = end_of(qemu_->monitor(), 600ms, [](QmpClient& qmp) {
    auto guard = PauseGuard::make(qmp, 100ms);
    if (guard && (*guard)->stop()) ::raise(SIGSTOP);
  });
  EXPECT_EQ(signal, -1);
  EXPECT_TRUE(is_resumed());
}

TEST_P(Guard, EndBeatEndsTheWatch) {
  const int signal = end_of(qemu_->monitor(), 600ms, [](QmpClient& qmp) {
    auto guard = PauseGuard::make(qmp, 100ms);
    if (!guard) return;
    (*guard)->beat();
    (*guard)->end_beat();
    ::raise(SIGSTOP);
  });
  EXPECT_EQ(signal, -1);
}

TEST_P(Guard, BeatAfterEndBeatBeginsAnew) {
  const int signal = end_of(qemu_->monitor(), 5s, [](QmpClient& qmp) {
    auto guard = PauseGuard::make(qmp, 100ms);
    if (!guard) return;
    (*guard)->beat();
    (*guard)->end_beat();
    (*guard)->beat();
    ::raise(SIGSTOP);
  });
  EXPECT_EQ(signal, SIGKILL);
}

TEST_P(Guard, WithoutALongestSilenceBeatsMeanNothing) {
  const int signal = end_of(qemu_->monitor(), 400ms, [](QmpClient& qmp) {
    auto guard = PauseGuard::make(qmp);
    if (!guard) return;
    (*guard)->beat();
    ::raise(SIGSTOP);
  });
  EXPECT_EQ(signal, -1);
}

TEST_P(Guard, SuspendedGuestIsRefused) {
  // No firmware suspends by itself; a guest still waiting for its migration passes for all such states.
  RealQemu waiting{GetParam().path, {"-M", "q35", "-m", "64", "-incoming", "defer"}};
  ASSERT_TRUE(waiting.running()) << waiting.complaint();
  const auto qmp = test::must_connect(waiting.monitor());
  const auto guard = PauseGuard::make(*qmp);
  ASSERT_TRUE(guard);
  const auto stopped = (*guard)->stop();
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().kind(), ErrorKind::kRefused);
}

INSTANTIATE_TEST_SUITE_P(Qemu, Guard, testing::ValuesIn(test::qemu_programs()),
                         [](const auto& instance) { return instance.param.label; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Guard);

}  // namespace
}  // namespace vmsieve
