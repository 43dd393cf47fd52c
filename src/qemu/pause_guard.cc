// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/pause_guard.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>
#include <chrono>
#include <thread>

#include "vmsieve/qemu/forked_child.h"
#include "vmsieve/qemu/guard_child.h"
#include "vmsieve/qemu/machine.h"

namespace vmsieve {

namespace {

constexpr int kArmMilliseconds = 5000;
constexpr std::chrono::milliseconds kGuardPatience{2000};

bool send_message(int link, GuardMessage message) {
  const char byte = static_cast<char>(message);
  return ::send(link, &byte, 1, MSG_NOSIGNAL) == 1;
}

/// States that end by themselves or by another command's doing (qapi/run-state.json): stopping the guest in
/// one of them would not hold, or disturb what goes on.
bool is_passing(const std::string& status) {
  for (const char* passing : {"suspended", "inmigrate", "finish-migrate", "restore-vm", "save-vm", "colo"}) {
    if (status == passing) return true;
  }
  return false;
}

}  // namespace

Result<std::unique_ptr<PauseGuard>> PauseGuard::make(QmpClient& qmp,
                                                     std::chrono::milliseconds longest_silence) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return errno_error(errno, "cannot make the pause guard's link");
  }
  std::unique_ptr<PauseGuard> guard{new PauseGuard{qmp}};
  guard->link_ = UniqueFd{ends[0]};
  const UniqueFd child_end{ends[1]};
  // Missing it only means that the child cannot connect anew.
  UniqueFd handle;
  if (auto opened = open_file(qmp.path(), O_PATH)) handle = std::move(*opened);

  const GuardDescriptors own{child_end.get(), qmp.socket(), handle.get(), ::getpid(),
                             static_cast<long>(longest_silence.count())};
  const SignalBlock block;
  guard->child_ = ::fork();
  if (guard->child_ == 0) run_guard_child(own);
  if (guard->child_ < 0) return errno_error(errno, "cannot fork the pause guard");
  return guard;
}

PauseGuard::~PauseGuard() {
  if (child_ <= 0) return;
  // On failure the child stays armed, and the broken link makes it try.
  (void)resume().ok();
  if (!stopped_) send_message(link_.get(), GuardMessage::kFarewell);
  link_.reset();
  wait_for_child();
}

void PauseGuard::beat() const { send_message(link_.get(), GuardMessage::kBeat); }

void PauseGuard::end_beat() const { send_message(link_.get(), GuardMessage::kNoBeat); }

void PauseGuard::wait_for_child() {
  const auto deadline = std::chrono::steady_clock::now() + kGuardPatience;
  for (;;) {
    const pid_t done = ::waitpid(child_, nullptr, WNOHANG);
    // ECHILD: somebody else reaped it, or SIGCHLD is ignored.
    if (done == child_ || (done < 0 && errno != EINTR)) return;
    if (std::chrono::steady_clock::now() >= deadline) break;
    std::this_thread::sleep_for(std::chrono::microseconds{200});
  }
  // It may still be trying to resume the guest; otherwise something has stopped it.
  if (stopped_) return;
  ::kill(child_, SIGKILL);
  ::waitpid(child_, nullptr, 0);
}

Result<void> PauseGuard::arm() {
  const auto gone = [&] {
    return make_error(ErrorKind::kVanished,
                      "the pause guard's child {} is gone: the guest is not stopped without it", child_);
  };
  if (!send_message(link_.get(), GuardMessage::kArm)) return gone();
  for (;;) {
    pollfd poll{link_.get(), POLLIN, 0};
    const int n = ::poll(&poll, 1, kArmMilliseconds);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return gone();
    char message = 0;
    const ssize_t got = ::recv(link_.get(), &message, 1, MSG_DONTWAIT);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got != 1 || message != static_cast<char>(GuardMessage::kArmed)) return gone();
    return {};
  }
}

Result<void> PauseGuard::stop() {
  if (stopped_) return {};
  VMSIEVE_ASSIGN(const RunState state, read_run_state(qmp_));
  was_running_ = state.running;
  if (is_passing(state.status)) {
    return make_error(ErrorKind::kRefused,
                      "the guest is in state '{}', in which it cannot be stopped and resumed", state.status);
  }
  if (!state.running) return {};
  if (auto armed = arm(); !armed) {
    send_message(link_.get(), GuardMessage::kDisarm);
    return armed;
  }
  // From here on it may be stopped, whatever the answer is.
  stopped_ = true;
  auto reply = qmp_.execute("stop");
  if (!reply) return reply.error();
  return {};
}

Result<void> PauseGuard::resume() {
  if (!stopped_) return {};
  auto reply = qmp_.execute("cont");
  if (!reply) return reply.error();
  stopped_ = false;
  // If the child is gone there is nobody to disarm.
  send_message(link_.get(), GuardMessage::kDisarm);
  return {};
}

Heartbeat::Heartbeat(const PauseGuard& guard) : guard_(guard), thread_([this] { run(); }) {}

Heartbeat::~Heartbeat() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  ending_.notify_one();
  thread_.join();
  guard_.end_beat();
}

void Heartbeat::run() {
  constexpr std::chrono::milliseconds kPeriod{100};
  std::unique_lock lock(mutex_);
  do {
    guard_.beat();
  } while (!ending_.wait_for(lock, kPeriod, [&] { return ended_; }));
}

}  // namespace vmsieve
