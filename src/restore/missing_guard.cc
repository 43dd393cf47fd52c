// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/missing_guard.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>

#include "vmsieve/qemu/forked_child.h"

namespace vmsieve {

namespace {

constexpr char kDismissed = 'd';
constexpr char kWords[] =
    "vmsieve: the process that brought this VM's memory in has died before all was there; the VM was "
    "ended. Its checkpoint is as it was.\n";

/// The whole life of the child, entered right after fork(2) with all signals blocked. Async-signal-safe.
[[noreturn]] void watch_over(int link, int qemu, int log) noexcept {
  int kept[] = {link, qemu, log};
  enter_own_life("vmsieve-missing", kept, 3);
  (void)!::chdir("/");
  for (;;) {
    pollfd polls[] = {{link, POLLIN, 0}, {qemu, POLLIN, 0}};
    if (::poll(polls, 2, -1) < 0) continue;
    if (polls[1].revents != 0) ::_exit(0);
    char word = 0;
    const ssize_t got = ::recv(link, &word, 1, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (got == 1 && word == kDismissed) ::_exit(0);
    ::syscall(SYS_pidfd_send_signal, qemu, SIGKILL, nullptr, 0);
    (void)!::write(log, kWords, sizeof kWords - 1);
    ::_exit(0);
  }
}

}  // namespace

Result<std::unique_ptr<MissingGuard>> MissingGuard::make(int qemu, int log) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    return errno_error(errno, "cannot make a link to a guard");
  UniqueFd link{ends[0]};
  const UniqueFd child_end{ends[1]};
  pid_t child = -1;
  {
    const SignalBlock block;
    child = ::fork();
    if (child == 0) watch_over(child_end.get(), qemu, log);
  }
  if (child < 0) return errno_error(errno, "cannot fork a guard");
  return std::unique_ptr<MissingGuard>{new MissingGuard{std::move(link), child}};
}

MissingGuard::~MissingGuard() {
  link_.reset();
  // ECHILD: somebody else reaped it.
  while (::waitpid(child_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

bool MissingGuard::stands() const {
  pollfd poll{link_.get(), POLLIN, 0};
  return ::poll(&poll, 1, 0) == 0;
}

void MissingGuard::dismiss() const { (void)!::send(link_.get(), &kDismissed, 1, MSG_NOSIGNAL); }

}  // namespace vmsieve
