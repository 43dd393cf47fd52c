// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/qmp.h"

#include <poll.h>
#include <sys/socket.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "vmsieve/qemu/unix_socket.h"

namespace vmsieve {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kMaxEvents = 256;

/// For poll(2): what is left, rounded up so that the last wait does not spin.
int poll_milliseconds(Clock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<decltype(left)>(left, 0, 1 << 30));
}

/// Waits until the socket is ready; false when the deadline passed.
Result<bool> wait_for(int socket, short events, Clock::time_point deadline) {
  for (;;) {
    pollfd poll{socket, events, 0};
    const int n = ::poll(&poll, 1, poll_milliseconds(deadline));
    if (n > 0) return true;
    if (n == 0) return false;
    if (errno != EINTR) return errno_error(errno, "cannot wait for the monitor's socket");
  }
}

Error gone(const std::string& path) {
  return make_error(ErrorKind::kVanished, "QEMU closed its monitor {}", path);
}

ssize_t send_with_fd(int socket, std::string_view bytes, int pass_fd) {
  iovec data{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (pass_fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &pass_fd, sizeof pass_fd);
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL);
}

}  // namespace

Result<std::unique_ptr<QmpClient>> QmpClient::connect(const std::string& path, Milliseconds timeout) {
  const TimePoint deadline = Clock::now() + timeout;
  std::unique_ptr<QmpClient> client{new QmpClient};
  client->path_ = path;
  VMSIEVE_ASSIGN(client->socket_, connect_unix(path, deadline));
  VMSIEVE_TRY(client->handshake(deadline));
  return client;
}

Result<void> QmpClient::handshake(TimePoint deadline) {
  auto greeting = receive(deadline);
  // An event of the moment may come first (seen with QEMU 7.2).
  while (greeting && greeting->kind == QmpMessage::Kind::kEvent) greeting = receive(deadline);
  if (!greeting && greeting.error().kind() == ErrorKind::kTimeout) {
    return make_error(ErrorKind::kBusy,
                      "no greeting from {}: another client (a save of vmsieve, libvirt) holds this monitor, "
                      "which serves one at a time, or QEMU hangs",
                      path_);
  }
  if (!greeting && greeting.error().kind() == ErrorKind::kDamaged) {
    return make_error(ErrorKind::kIncompatible, "{} is no QMP monitor: {}", path_,
                      greeting.error().message());
  }
  if (!greeting) return greeting.error();
  if (greeting->kind != QmpMessage::Kind::kGreeting) {
    return make_error(ErrorKind::kIncompatible, "{} did not greet as a QMP monitor does", path_);
  }
  const Json& body = greeting->body;
  const Json version = body.is_object() ? body.value("version", Json::object()) : Json::object();
  const Json numbers = version.is_object() ? version.value("qemu", Json::object()) : Json::object();
  const auto major = json_u64(numbers, "major");
  const auto minor = json_u64(numbers, "minor");
  const auto micro = json_u64(numbers, "micro");
  if (!major || !minor || !micro) {
    return make_error(ErrorKind::kIncompatible, "the greeting of {} tells no QEMU version", path_);
  }
  version_ = fmt::format("{}.{}.{}", *major, *minor, *micro);
  package_ = json_string(version, "package");

  const auto left = std::chrono::duration_cast<Milliseconds>(deadline - Clock::now());
  auto reply = execute("qmp_capabilities", Json::object(), std::max(left, Milliseconds{1}));
  if (!reply) return reply.error().with_context("negotiating QMP capabilities");
  return {};
}

Result<void> QmpClient::send(std::string_view bytes, int pass_fd, TimePoint deadline) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = send_with_fd(socket_.get(), bytes.substr(done), done == 0 ? pass_fd : -1);
    if (n >= 0) {
      done += static_cast<std::size_t>(n);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno == EPIPE || errno == ECONNRESET) return gone(path_);
    if (errno != EAGAIN) return errno_error(errno, fmt::format("cannot write to the monitor {}", path_));
    VMSIEVE_ASSIGN(const bool ready, wait_for(socket_.get(), POLLOUT, deadline));
    if (!ready) {
      torn_ = torn_ || done > 0;
      return make_error(ErrorKind::kTimeout, "QEMU did not take a command on {} in time", path_);
    }
  }
  return {};
}

Result<void> QmpClient::wait_readable(TimePoint deadline) const {
  VMSIEVE_ASSIGN(const bool ready, wait_for(socket_.get(), POLLIN, deadline));
  if (!ready) return make_error(ErrorKind::kTimeout, "QEMU did not answer on {} in time", path_);
  return {};
}

Result<QmpMessage> QmpClient::receive(TimePoint deadline) {
  for (;;) {
    if (auto line = lines_.next_line()) return parse_qmp_message(*line);
    char chunk[65536];
    const ssize_t n = ::recv(socket_.get(), chunk, sizeof chunk, 0);
    if (n > 0) {
      VMSIEVE_TRY(lines_.feed({chunk, static_cast<std::size_t>(n)}));
      continue;
    }
    if (n == 0 || errno == ECONNRESET) return gone(path_);
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return errno_error(errno, fmt::format("cannot read from the monitor {}", path_));
    VMSIEVE_TRY(wait_readable(deadline));
  }
}

Result<QmpClient::Json> QmpClient::execute(std::string_view command, Json arguments, Milliseconds timeout,
                                           int pass_fd) {
  const TimePoint deadline = Clock::now() + timeout;
  const u64 id = next_id_++;
  if (torn_) {
    VMSIEVE_TRY(send(kQmpResync, -1, deadline));
    torn_ = false;
    ++stray_errors_;
  }
  VMSIEVE_TRY(send(format_qmp_command(command, arguments, id), pass_fd, deadline));
  for (;;) {
    auto message = receive(deadline);
    if (!message) return message.error().with_context(command);
    if (message->kind == QmpMessage::Kind::kEvent) {
      remember_event(std::move(message->body));
      continue;
    }
    if (message->kind == QmpMessage::Kind::kError && !message->id) {
      if (stray_errors_ == 0)
        return make_error(ErrorKind::kRefused, "{}: {}", command, message->error_text());
      --stray_errors_;
      continue;
    }
    // The late answer to a command that was given up.
    if (message->id != id) continue;
    if (message->kind == QmpMessage::Kind::kReturn) return std::move(message->body);
    return make_error(ErrorKind::kRefused, "QEMU refused {}: {}", command, message->error_text());
  }
}

Result<std::string> QmpClient::human(std::string_view command_line, Milliseconds timeout) {
  auto reply = execute("human-monitor-command", Json{{"command-line", std::string{command_line}}}, timeout);
  if (!reply) return reply.error().with_context(command_line);
  if (!reply->is_string()) {
    return make_error(ErrorKind::kDamaged, "QEMU's monitor answered '{}' with no text", command_line);
  }
  return reply->get<std::string>();
}

void QmpClient::remember_event(Json event) {
  if (events_.size() == kMaxEvents) events_.pop_front();
  events_.push_back(std::move(event));
}

Result<QmpClient::Json> QmpClient::wait_event(std::string_view name, Milliseconds timeout) {
  const TimePoint deadline = Clock::now() + timeout;
  const auto is_it = [&](const Json& event) { return json_string(event, "event") == name; };
  const auto early = std::find_if(events_.begin(), events_.end(), is_it);
  if (early != events_.end()) {
    Json event = std::move(*early);
    events_.erase(early);
    return event;
  }
  for (;;) {
    auto message = receive(deadline);
    if (!message) return message.error().with_context(fmt::format("waiting for the event {}", name));
    if (message->kind != QmpMessage::Kind::kEvent) continue;
    if (is_it(message->body)) return std::move(message->body);
    remember_event(std::move(message->body));
  }
}

Result<pid_t> QmpClient::peer_pid() const {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(socket_.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
    return errno_error(errno, fmt::format("cannot ask who listens on {}", path_));
  }
  if (peer.pid <= 0) {
    return make_error(ErrorKind::kUnsupported, "the process behind {} is outside this PID namespace", path_);
  }
  return peer.pid;
}

}  // namespace vmsieve
