// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/attach_child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>

#include "vmsieve/qemu/forked_child.h"

namespace vmsieve {

namespace {

// For stopping (the thread may sleep uninterruptibly), and again for the calls.
constexpr long kPatienceMilliseconds = 2000;

// Linux 5.13, include/uapi/linux/ptrace.h; glibc 2.34 names it.
constexpr auto kGetRseqConfiguration = static_cast<__ptrace_request>(0x420f);
struct RseqConfiguration {
  u64 area;
  u32 size;
  u32 signature;
  u32 flags;
  u32 padding;
};
// Linux 6.1, include/uapi/linux/userfaultfd.h: USERFAULTFD_IOC_NEW.
constexpr u64 kNewUserfaultfd = _IO(0xAA, 0x00);
constexpr u64 kRseqSectionOffset = 8;  // struct rseq: rseq_cs

struct Stop {
  enum class Kind { kEvent, kSystemCall, kSignal, kGone, kTimeout } kind = Kind::kTimeout;
  int signal = 0;
};

Stop classify(const siginfo_t& info) {
  if (info.si_code != CLD_TRAPPED && info.si_code != CLD_STOPPED) return {Stop::Kind::kGone};
  // ptrace(2): the event in the second byte; bit 7 by PTRACE_O_TRACESYSGOOD.
  const int signal = info.si_status & 0xff;
  if (info.si_status >> 8 != 0) return {Stop::Kind::kEvent, signal};
  if (signal == (SIGTRAP | 0x80)) return {Stop::Kind::kSystemCall};
  return {Stop::Kind::kSignal, signal};
}

/// The tracer of one thread. Letting go is what the kernel does when this process ends.
class Tracer {
 public:
  explicit Tracer(const AttachPlan& plan) : target_(plan.target), handle_(plan.target_handle) {}

  /// Seizes the target and stops its main thread, outside restartable sequences.
  AttachOutcome stop();
  /// Resumes the stopped thread until the end of the call that it is about to make. A signal that
  /// comes instead is kept for let_go().
  AttachOutcome run_call();
  /// From the stopped thread: the target runs on, and gets the signal that was kept.
  AttachOutcome let_go();

 private:
  Stop next_stop() const;
  AttachOutcome wait_for_event();
  AttachOutcome resume(int request, int signal) const;
  bool in_restartable_sequence() const;
  void keep_signal(int signal);
  void restart_clock() { deadline_ = now_milliseconds() + kPatienceMilliseconds; }

  pid_t target_;
  int handle_;
  long deadline_ = 0;
  int kept_signal_ = 0;
};

/// The stop stays unreaped (WNOWAIT): if we die before we have passed a signal on, the kernel does it.
Stop Tracer::next_stop() const {
  sigset_t child_changes;
  ::sigemptyset(&child_changes);
  ::sigaddset(&child_changes, SIGCHLD);
  for (;;) {
    siginfo_t info{};
    const int result =
        ::waitid(P_PID, static_cast<id_t>(target_), &info, WEXITED | WSTOPPED | WNOHANG | WNOWAIT | __WALL);
    if (result < 0 && errno != EINTR) return {Stop::Kind::kGone};
    if (result == 0 && info.si_pid == target_) return classify(info);
    const long left = deadline_ - now_milliseconds();
    if (left <= 0) return {Stop::Kind::kTimeout};
    const timespec patience{left / 1000, left % 1000 * 1000000};
    ::sigtimedwait(&child_changes, nullptr, &patience);
  }
}

AttachOutcome Tracer::resume(int request, int signal) const {
  const long data = signal;
  if (::ptrace(static_cast<__ptrace_request>(request), target_, nullptr, data) == 0) return {};
  return {errno == ESRCH ? AttachStep::kGone : AttachStep::kRegisters, errno};
}

AttachOutcome Tracer::wait_for_event() {
  for (;;) {
    const Stop stop = next_stop();
    switch (stop.kind) {
      case Stop::Kind::kEvent: return {};
      case Stop::Kind::kGone: return {AttachStep::kGone, ESRCH};
      case Stop::Kind::kTimeout: return {AttachStep::kInterrupt, ETIMEDOUT};
      case Stop::Kind::kSystemCall: break;
      case Stop::Kind::kSignal: break;
    }
    if (const AttachOutcome resumed = resume(PTRACE_CONT, stop.signal); !resumed.ok()) return resumed;
  }
}

/// A thread in a restartable sequence (rseq(2)) must leave it the kernel's way, which it does not
/// when we move its instruction pointer. The field may also be left over from one.
bool Tracer::in_restartable_sequence() const {
  RseqConfiguration rseq{};
  if (::ptrace(kGetRseqConfiguration, target_, sizeof rseq, &rseq) <= 0 || rseq.area == 0) return false;
  u64 section = 0;
  const iovec local{&section, sizeof section};
  const iovec remote{reinterpret_cast<void*>(rseq.area + kRseqSectionOffset), sizeof section};
  return ::process_vm_readv(target_, &local, 1, &remote, 1, 0) == sizeof section && section != 0;
}

AttachOutcome Tracer::stop() {
  restart_clock();
  const long options = PTRACE_O_TRACESYSGOOD;
  if (::ptrace(PTRACE_SEIZE, target_, nullptr, options) != 0) return {AttachStep::kSeize, errno};
  // Now its number cannot be reused; was it before?
  if (::syscall(SYS_pidfd_send_signal, handle_, 0, nullptr, 0) != 0 && errno == ESRCH) {
    return {AttachStep::kGone, ESRCH};
  }
  for (;;) {
    if (::ptrace(PTRACE_INTERRUPT, target_, nullptr, nullptr) != 0) return {AttachStep::kGone, errno};
    if (const AttachOutcome waited = wait_for_event(); !waited.ok()) return waited;
    if (!in_restartable_sequence()) return {};
    // On its way to user mode the kernel ends the sequence, or clears what is left of it.
    if (const AttachOutcome resumed = resume(PTRACE_CONT, 0); !resumed.ok()) return resumed;
    if (now_milliseconds() >= deadline_) return {AttachStep::kInterrupt, ETIMEDOUT};
  }
}

/// An exception of our own making is forgotten; a signal that somebody has sent is passed on.
void Tracer::keep_signal(int signal) {
  siginfo_t info{};
  const bool known = ::ptrace(PTRACE_GETSIGINFO, target_, nullptr, &info) == 0;
  kept_signal_ = known && info.si_code <= 0 ? signal : 0;
}

AttachOutcome Tracer::run_call() {
  restart_clock();
  int signal = 0;
  for (int system_call_stops = 0; system_call_stops < 2;) {
    if (const AttachOutcome resumed = resume(PTRACE_SYSCALL, signal); !resumed.ok()) return resumed;
    signal = 0;
    const Stop stop = next_stop();
    switch (stop.kind) {
      case Stop::Kind::kSystemCall: ++system_call_stops; break;
      // A group stop: the thread joins it again when we let go.
      case Stop::Kind::kEvent: break;
      case Stop::Kind::kSignal:
        // It cannot be blocked. Others are, but for exceptions.
        if (stop.signal == SIGSTOP) {
          signal = SIGSTOP;
          break;
        }
        keep_signal(stop.signal);
        return {AttachStep::kTrapped, 0};
      case Stop::Kind::kGone: return {AttachStep::kGone, ESRCH};
      case Stop::Kind::kTimeout: return {AttachStep::kUnfinished, ETIMEDOUT};
    }
  }
  return {};
}

AttachOutcome Tracer::let_go() { return resume(PTRACE_DETACH, kept_signal_); }

AttachOutcome close_there(Tracer& tracer, ThreadCall& call, long number) {
  if (const auto set = call.start(SYS_close, {static_cast<u64>(number)}, false); !set.ok()) return set;
  return tracer.run_call();
}

/// Takes the descriptor that the target's call has made, and closes it there unless it is shared.
AttachOutcome take_descriptor(const AttachPlan& plan, Tracer& tracer, ThreadCall& call, long number,
                              int& taken) {
  taken = static_cast<int>(::syscall(SYS_pidfd_getfd, plan.target_handle, number, 0));
  const AttachOutcome outcome{taken >= 0 ? AttachStep::kDone : AttachStep::kTake, taken >= 0 ? 0 : errno};
  if (plan.task == AttachTask::kShare && outcome.ok()) return outcome;
  if (const auto closed = close_there(tracer, call, number); !closed.ok()) return closed;
  return outcome;
}

AttachOutcome make_and_take(const AttachPlan& plan, Tracer& tracer, ThreadCall& call, long& number,
                            int& taken) {
  constexpr u64 kFlags = O_CLOEXEC | O_NONBLOCK;
  const auto set =
      plan.device < 0 ? call.start(SYS_userfaultfd, {kFlags}, true)
                      : call.start(SYS_ioctl, {static_cast<u64>(plan.device), kNewUserfaultfd, kFlags}, true);
  if (!set.ok()) return set;
  if (const auto ran = tracer.run_call(); !ran.ok()) return ran;
  if (const auto read = call.read_result(number); !read.ok()) return read;
  if (number < 0) return {AttachStep::kCall, static_cast<int>(-number)};
  return take_descriptor(plan, tracer, call, number, taken);
}

AttachOutcome work(const AttachPlan& plan, ThreadCall& call, long& number, int& taken) {
  Tracer tracer{plan};
  if (const auto stopped = tracer.stop(); !stopped.ok()) return stopped;
  if (const auto prepared = call.prepare(); !prepared.ok()) {
    (void)tracer.let_go();
    return prepared;
  }
  // From here on the thread finds back by itself whenever this process ends.
  const AttachOutcome outcome = plan.task == AttachTask::kClose
                                    ? close_there(tracer, call, plan.descriptor)
                                    : make_and_take(plan, tracer, call, number, taken);
  if (outcome.step == AttachStep::kUnfinished || outcome.step == AttachStep::kGone) return outcome;
  const AttachOutcome restored = call.restore();
  const AttachOutcome released = tracer.let_go();
  if (!outcome.ok()) return outcome;
  return restored.ok() ? released : restored;
}

/// If the parent is gone there is nobody to tell.
void say(int link, AttachReport report, int taken) {
  iovec bytes{&report, sizeof report};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof taken)] = {};
  if (report.outcome.ok() && taken >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof taken);
    std::memcpy(CMSG_DATA(header), &taken, sizeof taken);
  }
  (void)!::sendmsg(link, &message, MSG_NOSIGNAL);
}

}  // namespace

void run_attach_child(const AttachPlan& plan) noexcept {
  int kept[] = {plan.link, plan.target_handle};
  enter_own_life("vmsieve-attach", kept, 2);
  // Ignored, the stops would not be told.
  ::signal(SIGCHLD, SIG_DFL);
  ThreadCall call{plan.target, plan.calls};
  long number = -1;
  int taken = -1;
  const AttachOutcome outcome = work(plan, call, number, taken);
  say(plan.link, {outcome, static_cast<int>(number)}, taken);
  ::_exit(0);
}

}  // namespace vmsieve
