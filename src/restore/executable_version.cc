// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/executable_version.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <array>
#include <cerrno>
#include <csignal>
#include <string_view>

#include "vmsieve/base/clock.h"
#include "vmsieve/base/fd.h"

namespace vmsieve {

namespace {

constexpr double kTimeoutMs = 10000;
constexpr std::size_t kMostOutput = 4096;
constexpr std::string_view kPhrase = "QEMU emulator version ";

/// Starts `executable --version`, both outputs into `output`.
Result<pid_t> spawn(const std::string& executable, int output) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output, STDERR_FILENO);
  std::string path = executable;
  std::string option = "--version";
  const std::array<char*, 3> arguments{path.data(), option.data(), nullptr};
  pid_t pid = -1;
  const int failed = ::posix_spawn(&pid, executable.c_str(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) return errno_error(failed, fmt::format("cannot run {} --version", executable));
  return pid;
}

/// All that the program prints until it ends, cut at kMostOutput bytes; false when time runs out.
bool collect(int fd, std::string& text) {
  const Stopwatch watch;
  while (watch.ms() < kTimeoutMs && text.size() < kMostOutput) {
    pollfd wait{fd, POLLIN, 0};
    if (::poll(&wait, 1, 100) <= 0) continue;
    std::array<char, 1024> buffer{};
    const ssize_t n = ::read(fd, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return true;
    text.append(buffer.data(), static_cast<std::size_t>(n));
  }
  return text.size() >= kMostOutput;
}

}  // namespace

Result<std::string> read_executable_version(const std::string& executable) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return errno_error(errno, "cannot make a pipe");
  const UniqueFd reading{ends[0]};
  UniqueFd writing{ends[1]};
  VMSIEVE_ASSIGN(const pid_t pid, spawn(executable, writing.get()));
  writing.reset();
  std::string text;
  const bool ended = collect(reading.get(), text);
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  if (!ended) return make_error(ErrorKind::kTimeout, "{} --version has not ended within 10 s", executable);
  const std::size_t at = text.find(kPhrase);
  if (at == std::string::npos) {
    return make_error(ErrorKind::kIncompatible,
                      "{} is no QEMU system emulator, --version says \"{}\": give one with --qemu PATH",
                      executable, text.substr(0, text.find('\n')));
  }
  const std::size_t start = at + kPhrase.size();
  return text.substr(start, text.find_first_not_of("0123456789.", start) - start);
}

}  // namespace vmsieve
