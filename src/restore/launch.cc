// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/launch.h"

#include <algorithm>
#include <cerrno>
#include <thread>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmsieve/base/units.h"
#include "vmsieve/restore/option_parts.h"

extern char** environ;  // NOLINT: POSIX says that a program declares it itself

namespace vmsieve {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kStreamNumber =
    LaunchOptions::kFirstInherited - 1;  // in the new QEMU, behind stdin, stdout and stderr
constexpr std::size_t kMostInherited = 64;
constexpr int kFirstUnused = 100;  // our descriptors are moved behind those that the child gets
constexpr milliseconds kSendPatience{30000};
constexpr milliseconds kExitPatience{2000};
constexpr milliseconds kPollInterval{1};
constexpr int kStreamBufferBytes = 4 << 20;
constexpr u64 kLastWordsBytes = 2048;

Result<UniqueFd> move_up(UniqueFd fd) {
  const int moved = ::fcntl(fd.get(), F_DUPFD_CLOEXEC, kFirstUnused);
  if (moved < 0) return errno_error(errno, "cannot duplicate a descriptor");
  return UniqueFd{moved};
}

struct StreamPair {
  UniqueFd ours;
  UniqueFd theirs;
};

/// A socket pair and not a pipe: writing to it when QEMU is gone raises no SIGPIPE (MSG_NOSIGNAL), which
/// a library must not leave to its caller.
Result<StreamPair> make_stream() {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
    return errno_error(errno, "cannot make a socket pair for the migration stream");
  }
  StreamPair stream{UniqueFd{pair[0]}, UniqueFd{pair[1]}};
  // As much as the system allows; without it the writer wakes up for every 200 kB.
  if (::setsockopt(pair[0], SOL_SOCKET, SO_SNDBUFFORCE, &kStreamBufferBytes, sizeof kStreamBufferBytes) !=
      0) {
    (void)::setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &kStreamBufferBytes, sizeof kStreamBufferBytes);
  }
  VMSIEVE_ASSIGN(stream.ours, move_up(std::move(stream.ours)));
  VMSIEVE_ASSIGN(stream.theirs, move_up(std::move(stream.theirs)));
  return stream;
}

std::vector<std::string> full_arguments(const LaunchOptions& options, const std::string& qmp_path) {
  std::vector<std::string> arguments{options.executable};
  arguments.insert(arguments.end(), options.arguments.begin(), options.arguments.end());
  arguments.insert(
      arguments.end(),
      {"-chardev", fmt::format("socket,id=vmsieve-qmp,path={},server=on,wait=off", escape_commas(qmp_path)),
       "-mon", "chardev=vmsieve-qmp,mode=control", "-incoming",
       options.defer ? "defer" : fmt::format("fd:{}", kStreamNumber)});
  if (options.stopped) arguments.emplace_back("-S");
  return arguments;
}

/// posix_spawn's attributes and file actions, destroyed on every path.
struct SpawnPlan {
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_t actions;

  SpawnPlan() {
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_init(&actions);
  }
  ~SpawnPlan() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;
};

/// posix_spawn and not fork: no copy of a large process's page tables, and safe with threads.
Result<pid_t> spawn(const LaunchOptions& options, const std::string& qmp_path, int stream, int log) {
  if (options.inherited.size() > kMostInherited)
    return Error(ErrorKind::kUnsupported, "QEMU would inherit too many descriptors");
  std::vector<UniqueFd> inherited;
  for (const int fd : options.inherited) {
    const int moved = ::fcntl(fd, F_DUPFD_CLOEXEC, kFirstUnused);
    if (moved < 0) return errno_error(errno, "cannot duplicate a descriptor");
    inherited.emplace_back(moved);
  }
  SpawnPlan plan;
  sigset_t none;
  sigset_t all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setflags(&plan.attributes,
                           POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  posix_spawnattr_setsigmask(&plan.attributes, &none);
  posix_spawnattr_setsigdefault(&plan.attributes, &all);
  posix_spawn_file_actions_addopen(&plan.actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&plan.actions, log, 1);
  posix_spawn_file_actions_adddup2(&plan.actions, log, 2);
  posix_spawn_file_actions_adddup2(&plan.actions, stream, kStreamNumber);
  int next = LaunchOptions::kFirstInherited;
  for (const UniqueFd& fd : inherited) posix_spawn_file_actions_adddup2(&plan.actions, fd.get(), next++);
  posix_spawn_file_actions_addclosefrom_np(&plan.actions, next);
  posix_spawn_file_actions_addchdir_np(&plan.actions, options.working_directory.c_str());

  std::vector<std::string> arguments = full_arguments(options, qmp_path);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);

  pid_t pid = -1;
  const int error =
      ::posix_spawn(&pid, options.executable.c_str(), &plan.actions, &plan.attributes, argv.data(), environ);
  if (error != 0) {
    return errno_error(error,
                       fmt::format("cannot start {} in {}", options.executable, options.working_directory));
  }
  return pid;
}

int shell_status(int wait_status) {
  return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

}  // namespace

RunningQemu::RunningQemu(pid_t pid, UniqueFd stream, QmpPlace place)
    : pid_(pid), stream_(std::move(stream)), place_(std::move(place)) {}

Result<std::unique_ptr<RunningQemu>> RunningQemu::start(const LaunchOptions& options, QmpPlace place) {
  VMSIEVE_ASSIGN(StreamPair stream, make_stream());
  VMSIEVE_ASSIGN(place.log, move_up(std::move(place.log)));
  const auto pid = spawn(options, place.path, stream.theirs.get(), place.log.get());
  if (!pid) {
    (void)::unlink(place.log_path.c_str());
    return pid.error();
  }
  std::unique_ptr<RunningQemu> qemu{new RunningQemu{*pid, std::move(stream.ours), std::move(place)}};
  stream.theirs.reset();
  VMSIEVE_TRY(qemu->connect(options.timeout));
  return qemu;
}

RunningQemu::~RunningQemu() {
  if (detached_) return;
  if (!wait_status_) {
    // The whole session: the executable may be a script that started QEMU.
    (void)::kill(-pid_, SIGKILL);
    (void)::kill(pid_, SIGKILL);
    while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  (void)::unlink(place_.path.c_str());
  (void)::unlink(place_.log_path.c_str());
}

Result<void> RunningQemu::connect(milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  for (;;) {
    if (const auto error = ended(milliseconds{0})) return *error;
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
    if (left <= milliseconds{0}) {
      return make_error(ErrorKind::kTimeout, "the new QEMU, process {}, does not answer on {} within {} s",
                        pid_, place_.path, timeout.count() / 1000);
    }
    // The socket exists early, the greeting comes when QEMU is ready; one that ends closes the socket.
    auto qmp = QmpClient::connect(place_.path, left);
    if (qmp) {
      qmp_ = std::move(*qmp);
      return {};
    }
    const ErrorKind kind = qmp.error().kind();
    const bool not_yet =
        kind == ErrorKind::kNotFound || kind == ErrorKind::kVanished || kind == ErrorKind::kBusy;
    if (!not_yet) return explain(qmp.error());
    std::this_thread::sleep_for(kPollInterval);
  }
}

Result<void> RunningQemu::send(std::span<const std::byte> bytes) {
  if (!stream_.valid()) return make_error(ErrorKind::kVanished, "the migration stream is closed");
  while (!bytes.empty()) {
    const ssize_t sent = ::send(stream_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(sent));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno == EPIPE || errno == ECONNRESET) {
      return make_error(ErrorKind::kVanished, "the new QEMU, process {}, closed the migration stream", pid_);
    }
    if (errno != EAGAIN) return errno_error(errno, "cannot write to the migration stream");
    pollfd writable{stream_.get(), POLLOUT, 0};
    const int ready = ::poll(&writable, 1, static_cast<int>(kSendPatience.count()));
    if (ready == 0) {
      return make_error(ErrorKind::kTimeout,
                        "the new QEMU, process {}, has taken nothing of the migration "
                        "stream for {} s",
                        pid_, kSendPatience.count() / 1000);
    }
  }
  return {};
}

Result<void> RunningQemu::wait_until_loaded(milliseconds patience) {
  const auto deadline = Clock::now() + patience;
  while (Clock::now() < deadline) {
    VMSIEVE_ASSIGN(const QmpClient::Json answer, qmp_->execute("query-migrate"));
    const auto text = [&](const char* key) -> std::string {
      const auto member = answer.is_object() ? answer.find(key) : answer.end();
      return member != answer.end() && member->is_string() ? member->get<std::string>() : "";
    };
    const std::string status = text("status");
    if (status == "completed") return {};
    if (status == "failed") {
      return make_error(ErrorKind::kIncompatible, "the new QEMU could not load the guest's state: {}",
                        text("error-desc"));
    }
    std::this_thread::sleep_for(kPollInterval);
  }
  return make_error(ErrorKind::kTimeout,
                    "the new QEMU, process {}, has not loaded the guest's state within {} s", pid_,
                    patience.count() / 1000);
}

std::optional<Error> RunningQemu::ended(milliseconds patience) {
  const auto deadline = Clock::now() + patience;
  while (!wait_status_) {
    int status = 0;
    const pid_t reaped = ::waitpid(pid_, &status, WNOHANG);
    if (reaped == pid_) {
      wait_status_ = status;
    } else if (reaped < 0 && errno == ECHILD) {
      wait_status_ = 0;  // the program ignores SIGCHLD, so the system has reaped it
    } else if (Clock::now() >= deadline) {
      return std::nullopt;
    } else {
      std::this_thread::sleep_for(kPollInterval);
    }
  }
  return make_error(ErrorKind::kIncompatible, "the new QEMU ended with status {}: {}",
                    shell_status(*wait_status_), last_words());
}

Error RunningQemu::explain(const Error& error) {
  if (error.kind() == ErrorKind::kVanished) close_stream();
  return ended(error.kind() == ErrorKind::kVanished ? kExitPatience : milliseconds{0}).value_or(error);
}

std::string RunningQemu::last_words() const {
  const auto fd = open_file(place_.log_path, O_RDONLY);
  if (!fd) return "its log cannot be read";
  const auto size = file_size(fd->get(), place_.log_path);
  const u64 bytes = size ? std::min(*size, kLastWordsBytes) : 0;
  std::string text(bytes, '\0');
  if (bytes == 0 ||
      !pread_exact(fd->get(), std::as_writable_bytes(std::span{text}), *size - bytes, place_.log_path)) {
    return "it said nothing";
  }
  if (*size > bytes) text.erase(0, text.find('\n') + 1);  // a line that was cut
  while (text.ends_with('\n') || text.ends_with(' ')) text.pop_back();
  for (std::size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at)) {
    text.replace(at, 1, "; ");
  }
  return text;
}

Result<int> wait_for_exit(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return errno_error(errno, fmt::format("cannot wait for process {}", pid));
  }
  return shell_status(status);
}

}  // namespace vmsieve
