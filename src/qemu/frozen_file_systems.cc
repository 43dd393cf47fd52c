// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/frozen_file_systems.h"

#include <poll.h>
#include <signal.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "vmsieve/qemu/forked_child.h"
#include "vmsieve/qemu/process_monitors.h"
#include "vmsieve/qemu/unix_socket.h"

namespace vmsieve {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr long kChildPatienceMs = 60000;
/// 0xFF ends whatever half command the agent was given before (qga/main.c; qobject/json-lexer.c).
constexpr char kThaw[] = "\xff\n{\"execute\":\"guest-fsfreeze-thaw\"}\n";

int left_ms(Clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<long>(left, 0, 1'000'000));
}

Result<void> send_all(int socket, std::string_view bytes, Clock::time_point deadline) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      bytes.remove_prefix(static_cast<std::size_t>(n));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return errno_error(errno, "cannot write to the guest agent's socket");
    pollfd writable{socket, POLLOUT, 0};
    if (::poll(&writable, 1, left_ms(deadline)) == 0)
      return Error(ErrorKind::kTimeout, "the guest agent takes no command");
  }
  return {};
}

/// The child: waits for the end of the link. A byte means that all is well; else it thaws, and stays until
/// the agent has answered, since QEMU drops what a client that hung up has sent.
[[noreturn]] void run_thawing_child(int link, int socket) noexcept {
  std::array<int, 2> kept{link, socket};
  enter_own_life("vmsieve-thaw", kept.data(), kept.size());
  char byte = 0;
  ssize_t n = 0;
  do {
    n = ::read(link, &byte, 1);
  } while (n < 0 && errno == EINTR);
  if (n == 1) ::_exit(0);
  // The guest may be stopped still: the pause guard lets it run.
  const long end = now_milliseconds() + kChildPatienceMs;
  std::size_t sent = 0;
  while (sent < sizeof kThaw - 1 && now_milliseconds() < end) {
    n = ::send(socket, kThaw + sent, sizeof kThaw - 1 - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      sent += static_cast<std::size_t>(n);
      continue;
    }
    if (errno != EAGAIN && errno != EINTR) ::_exit(1);
    pollfd writable{socket, POLLOUT, 0};
    ::poll(&writable, 1, 100);
  }
  // Its answer to the thaw, or to what was asked before: whatever comes, until it is silent for a while.
  bool answered = false;
  while (now_milliseconds() < end) {
    pollfd readable{socket, POLLIN, 0};
    const int ready = ::poll(&readable, 1, answered ? 1000 : 500);
    if (ready == 0 && answered) break;
    if (ready <= 0) continue;
    std::array<char, 4096> buffer;
    n = ::recv(socket, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) break;
    if (n > 0) answered = true;
  }
  ::_exit(0);
}

}  // namespace

Result<std::unique_ptr<FrozenFileSystems>> FrozenFileSystems::connect(const QemuProcess& process,
                                                                      Clock::time_point deadline) {
  auto path = guest_agent_socket(process.arguments);
  if (!path) {
    return make_error(
        ErrorKind::kNotFound,
        "process {} has no guest agent's socket (a virtserialport org.qemu.guest_agent.0 with a "
        "socket that QEMU listens on)",
        process.pid);
  }
  if (!path->starts_with('/')) path = process.working_directory + "/" + *path;
  struct stat info {};
  if (::stat(path->c_str(), &info) != 0) path = fmt::format("/proc/{}/root{}", process.pid, *path);
  std::unique_ptr<FrozenFileSystems> frozen{new FrozenFileSystems};
  VMSIEVE_ASSIGN(frozen->socket_, connect_unix(*path, deadline));
  VMSIEVE_TRY(frozen->synchronise(deadline));
  return frozen;
}

Result<void> thaw_file_systems(const QemuProcess& process, milliseconds patience) {
  VMSIEVE_ASSIGN(const auto agent, FrozenFileSystems::connect(process, Clock::now() + patience));
  agent->frozen_ = true;
  return agent->thaw(patience);
}

Result<std::unique_ptr<FrozenFileSystems>> FrozenFileSystems::freeze(const QemuProcess& process,
                                                                     milliseconds patience) {
  const auto deadline = Clock::now() + patience;
  VMSIEVE_ASSIGN(auto frozen, connect(process, deadline));
  VMSIEVE_TRY(frozen->watch_over());
  // ---- from here on it is thawed, whatever happens ----
  frozen->frozen_ = true;
  VMSIEVE_ASSIGN(const nlohmann::json count, frozen->ask("guest-fsfreeze-freeze", deadline));
  frozen->count_ = count.is_number_unsigned() ? count.get<u64>() : 0;
  return frozen;
}

/// What the agent said to others before is passed over (guest-sync-delimited).
Result<void> FrozenFileSystems::synchronise(Clock::time_point deadline) {
  u32 number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number) return errno_error(errno, "no random number");
  VMSIEVE_TRY(send_all(socket_.get(), "\xff\n", deadline));
  VMSIEVE_TRY(tell("guest-sync-delimited", {{"id", number}}, deadline));
  for (;;) {
    if (Clock::now() >= deadline)
      return Error(ErrorKind::kTimeout, "the guest agent says other things than it was asked");
    // An error is its answer to 0xFF.
    auto answer = hear("guest-sync-delimited", deadline);
    if (answer.ok() && *answer == number) return {};
    if (!answer.ok() && answer.error().kind() != ErrorKind::kRefused) return answer.error();
  }
}

Result<nlohmann::json> FrozenFileSystems::ask(std::string_view command, Clock::time_point deadline) {
  VMSIEVE_TRY(tell(command, nlohmann::json::object(), deadline));
  return hear(command, deadline);
}

Result<void> FrozenFileSystems::tell(std::string_view command, const nlohmann::json& arguments,
                                     Clock::time_point deadline) {
  const nlohmann::json asked{{"execute", command}, {"arguments", arguments}};
  return send_all(socket_.get(), asked.dump() + "\n", deadline);
}

Result<nlohmann::json> FrozenFileSystems::hear(std::string_view command, Clock::time_point deadline) {
  for (;;) {
    if (Clock::now() >= deadline)
      return make_error(ErrorKind::kTimeout, "the guest agent has not answered {} in time", command);
    while (auto line = lines_.next_line()) {
      const std::size_t begin = line->find('{');
      if (begin == std::string::npos) continue;
      const auto answer = nlohmann::json::parse(line->begin() + static_cast<std::ptrdiff_t>(begin),
                                                line->end(), nullptr, /*allow_exceptions=*/false);
      if (!answer.is_object()) continue;
      if (answer.contains("return")) return answer["return"];
      if (answer.contains("error")) {
        return make_error(ErrorKind::kRefused, "the guest agent refuses {}: {}", command,
                          json_string(answer["error"], "desc", "it does not say why"));
      }
    }
    pollfd readable{socket_.get(), POLLIN, 0};
    const int ready = ::poll(&readable, 1, left_ms(deadline));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0)
      return make_error(ErrorKind::kTimeout, "the guest agent has not answered {} in time", command);
    std::array<char, 4096> buffer{};
    const ssize_t n = ::recv(socket_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n <= 0) return Error(ErrorKind::kVanished, "the guest agent's socket was closed");
    if (!lines_.feed({buffer.data(), static_cast<std::size_t>(n)}))
      return Error(ErrorKind::kDamaged, "the guest agent sends a line that does not end");
  }
}

Result<void> FrozenFileSystems::watch_over() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    return errno_error(errno, "cannot make a link");
  link_ = UniqueFd{ends[0]};
  const UniqueFd child_end{ends[1]};
  const SignalBlock block;
  child_ = ::fork();
  if (child_ == 0) run_thawing_child(child_end.get(), socket_.get());
  if (child_ < 0) return errno_error(errno, "cannot fork");
  return {};
}

Result<void> FrozenFileSystems::thaw(milliseconds patience) {
  if (!frozen_) return {};
  const auto deadline = Clock::now() + patience;
  // A freeze that was not answered in time may be answered now.
  VMSIEVE_TRY(synchronise(deadline));
  VMSIEVE_TRY(ask("guest-fsfreeze-thaw", deadline));
  frozen_ = false;
  return {};
}

FrozenFileSystems::~FrozenFileSystems() {
  if (child_ <= 0) return;
  const bool thawed = thaw().ok();
  const char byte = 'Q';
  if (thawed) (void)::send(link_.get(), &byte, 1, MSG_NOSIGNAL);
  link_.reset();
  // Else it goes on by itself.
  if (thawed) ::waitpid(child_, nullptr, 0);
}

}  // namespace vmsieve
