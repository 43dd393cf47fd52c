// SPDX-License-Identifier: Apache-2.0
#include "background.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>
#include <cstdio>
#include <optional>

#include "vmsieve/base/fd.h"

namespace vmsieve::cli {

namespace {

/// The status that the child has told; none when it ended without a word.
std::optional<int> receive_status(int link) {
  unsigned char status = 0;
  ssize_t got = 0;
  do {
    got = ::read(link, &status, 1);
  } while (got < 0 && errno == EINTR);
  return got == 1 ? std::optional<int>{status} : std::nullopt;
}

void leave_terminal() {
  std::fflush(nullptr);
  ::setsid();
  const UniqueFd nothing{::open("/dev/null", O_RDWR | O_CLOEXEC)};
  for (int fd = 0; fd <= 2; ++fd) {
    // Whoever reads our output waits for its end: rather none than the old one.
    if (!nothing.valid() || ::dup2(nothing.get(), fd) < 0) ::close(fd);
  }
}

}  // namespace

int run_in_background(const std::function<int(const std::function<void(int)>& ready)>& work,
                      const Common& common) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return report(errno_error(errno, "cannot make a pipe"), common);
  const UniqueFd ours{ends[0]};
  UniqueFd theirs{ends[1]};
  std::fflush(nullptr);
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) return report(errno_error(errno, "cannot fork"), common);
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(kExitVanished);
    const auto tell = [&](int status) {
      const auto byte = static_cast<unsigned char>(status);
      (void)!::write(theirs.get(), &byte, 1);
      theirs.reset();
    };
    const int status = work([&](int ready_status) {
      leave_terminal();
      ::prctl(PR_SET_PDEATHSIG, 0);
      tell(ready_status);
    });
    std::fflush(nullptr);
    if (theirs.valid()) tell(status);
    return status;
  }
  theirs.reset();
  if (const auto status = receive_status(ours.get())) return *status;
  int ended = 0;
  while (::waitpid(child, &ended, 0) < 0 && errno == EINTR) {
  }
  return report(make_error(ErrorKind::kVanished, "the process {} that did the work has ended: {}", child,
                           WIFSIGNALED(ended) ? fmt::format("signal {}", WTERMSIG(ended))
                                              : fmt::format("status {}", WEXITSTATUS(ended))),
                common);
}

}  // namespace vmsieve::cli
