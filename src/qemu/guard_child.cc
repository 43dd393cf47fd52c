// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/guard_child.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <cerrno>
#include <cstddef>

#include "vmsieve/qemu/forked_child.h"

namespace vmsieve {

namespace {

// QEMU may be busy with the dead parent's last command (saving device state, reading a disk's
// metadata); until it has answered, hanging up would make it discard the `cont`.
constexpr long kAnswerMilliseconds = 120000;
// Somebody else may hold the monitor for a moment.
constexpr long kConnectMilliseconds = 10000;
constexpr int kConnectPauseMilliseconds = 20;

// The 0xFF and the line end undo half a command of the dead parent's (kQmpResync in qmp_wire.h).
constexpr char kCont[] = "\xFF\n{\"execute\":\"cont\",\"id\":\"vmsieve-guard\"}\r\n";
constexpr char kHello[] = "{\"execute\":\"qmp_capabilities\"}\r\n";
// The answer holds the id, and nothing else that QEMU sends does.
constexpr char kAnswer[] = "\"vmsieve-guard\"";

enum class Outcome { kAnswered, kDead, kTimeout };

/// False when the deadline passes first.
bool wait_until_ready(int fd, short events, long deadline) {
  for (;;) {
    const long left = deadline - now_milliseconds();
    if (left <= 0) return false;
    pollfd poll{fd, events, 0};
    const int n = ::poll(&poll, 1, static_cast<int>(left));
    if (n > 0) return true;
    if (n < 0 && errno != EINTR) return false;
  }
}

Outcome send_all(int fd, const char* text, std::size_t length, long deadline) {
  std::size_t done = 0;
  while (done < length) {
    const ssize_t n = ::send(fd, text + done, length - done, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) {
      done += static_cast<std::size_t>(n);
    } else if (errno == EAGAIN) {
      if (!wait_until_ready(fd, POLLOUT, deadline)) return Outcome::kTimeout;
    } else if (errno != EINTR) {
      return Outcome::kDead;
    }
  }
  return Outcome::kAnswered;
}

/// Reads until the answer to `cont` has come; what QEMU still had to say to the parent is skipped.
Outcome await_answer(int fd, long deadline) {
  std::size_t matched = 0;
  char buffer[4096];
  for (;;) {
    const ssize_t n = ::recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n == 0) return Outcome::kDead;
    if (n < 0 && errno == EAGAIN) {
      if (!wait_until_ready(fd, POLLIN, deadline)) return Outcome::kTimeout;
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Outcome::kDead;
    for (ssize_t i = 0; i < n; ++i) {
      // The pattern's first character occurs again only at its end, so a mismatch starts over.
      if (buffer[i] != kAnswer[matched]) matched = 0;
      if (buffer[i] == kAnswer[matched]) ++matched;
      if (matched == sizeof kAnswer - 1) return Outcome::kAnswered;
    }
  }
}

Outcome resume_on(int fd) {
  const long deadline = now_milliseconds() + kAnswerMilliseconds;
  const Outcome sent = send_all(fd, kCont, sizeof kCont - 1, deadline);
  return sent == Outcome::kAnswered ? await_answer(fd, deadline) : sent;
}

/// "/proc/self/fd/N": the socket itself, even if its path has been removed or replaced.
void format_handle_path(int handle, char (&path)[sizeof(sockaddr_un::sun_path)]) {
  constexpr char kFolder[] = "/proc/self/fd/";
  std::size_t length = 0;
  for (; length < sizeof kFolder - 1; ++length) path[length] = kFolder[length];
  char digits[16];
  std::size_t count = 0;
  for (int rest = handle; count == 0 || rest > 0; rest /= 10)
    digits[count++] = static_cast<char>('0' + rest % 10);
  while (count > 0) path[length++] = digits[--count];
  path[length] = '\0';
}

void resume_on_new_connection(int handle) {
  if (handle < 0) return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  format_handle_path(handle, address.sun_path);
  const long deadline = now_milliseconds() + kConnectMilliseconds;
  while (now_milliseconds() < deadline) {
    const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return;
    const bool connected = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
    if (!connected && errno == ECONNREFUSED) return;
    if (connected && send_all(fd, kHello, sizeof kHello - 1, deadline) == Outcome::kAnswered &&
        resume_on(fd) != Outcome::kDead) {
      return;
    }
    ::close(fd);
    ::poll(nullptr, 0, kConnectPauseMilliseconds);
  }
}

/// Waits for the parent's next message. A parent that is watched and silent too long is killed: whatever it
/// holds of the guest's memory goes with it. The broken link tells of that.
void kill_when_silent(const GuardDescriptors& own, long deadline) {
  if (wait_until_ready(own.link, POLLIN, deadline)) return;
  // Once it has died and somebody else is our parent, its number may be another process's.
  if (now_milliseconds() >= deadline && ::getppid() == own.parent) ::kill(own.parent, SIGKILL);
}

/// Waits until the parent says farewell or is gone; true when the guest is then to be resumed.
bool watch(const GuardDescriptors& own) {
  bool armed = false;
  bool watched = false;
  for (;;) {
    if (watched) kill_when_silent(own, now_milliseconds() + own.silence_ms);
    char message = 0;
    const ssize_t n = ::recv(own.link, &message, 1, 0);
    // ECONNRESET: the parent died without having read kArmed; what it sent before still comes.
    if (n < 0 && (errno == EINTR || errno == ECONNRESET)) continue;
    if (n <= 0) return armed;
    switch (static_cast<GuardMessage>(message)) {
      case GuardMessage::kArm: {
        armed = true;
        const char reply = static_cast<char>(GuardMessage::kArmed);
        // If it cannot be delivered the parent is gone, and the next recv says so.
        [[maybe_unused]] const ssize_t sent = ::send(own.link, &reply, 1, MSG_NOSIGNAL);
        break;
      }
      case GuardMessage::kDisarm: armed = false; break;
      case GuardMessage::kBeat: watched = own.silence_ms > 0; break;
      case GuardMessage::kNoBeat: watched = false; break;
      case GuardMessage::kFarewell: return false;
      case GuardMessage::kArmed: break;
    }
  }
}

}  // namespace

void run_guard_child(GuardDescriptors own) noexcept {
  int kept[] = {own.link, own.monitor, own.handle};
  enter_own_life("vmsieve-guard", kept, 3);
  // Nothing of the parent's file systems is kept busy.
  if (::chdir("/") != 0) ::_exit(1);
  if (watch(own) && resume_on(own.monitor) == Outcome::kDead) {
    ::close(own.monitor);
    resume_on_new_connection(own.handle);
  }
  ::_exit(0);
}

}  // namespace vmsieve
