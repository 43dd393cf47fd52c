// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/remote_userfaultfd.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <string>

#include "vmsieve/qemu/attach_child.h"
#include "vmsieve/qemu/forked_child.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/qemu/thread_call.h"

namespace vmsieve {

namespace {

// More than the child takes for all of its own deadlines.
constexpr std::chrono::milliseconds kAttachPatience{10000};

Error vanished(pid_t pid) { return make_error(ErrorKind::kVanished, "process {} is gone", pid); }

/// A field of /proc/PID/status, without its name; empty when there is none.
std::string status_field(pid_t pid, const std::string& name) {
  const auto status = read_text_file(fmt::format("/proc/{}/status", pid), kMiB);
  if (!status) return {};
  const std::size_t line = status->find("\n" + name + ":\t");
  if (line == std::string::npos) return {};
  const std::size_t value = line + name.size() + 3;
  return status->substr(value, status->find('\n', value) - value);
}

Error seize_error(pid_t pid, int error) {
  if (error != EPERM) return errno_error(error, fmt::format("cannot trace process {}", pid));
  const std::string tracer = status_field(pid, "TracerPid");
  if (!tracer.empty() && tracer != "0") {
    const auto name = read_text_file(fmt::format("/proc/{}/comm", tracer), kKiB);
    return make_error(ErrorKind::kBusy, "process {} is traced by process {} ({})", pid, tracer,
                      name ? name->substr(0, name->find('\n')) : "gone");
  }
  const std::string state = status_field(pid, "State");
  if (state.empty() || state[0] == 'Z' || state[0] == 'X') return vanished(pid);
  return make_error(ErrorKind::kPermission,
                    "may not trace process {}: this takes CAP_SYS_PTRACE (root), or its user with "
                    "kernel.yama.ptrace_scope = 0",
                    pid);
}

Error call_error(pid_t pid, int error) {
  if (error == EPERM) {
    return make_error(ErrorKind::kPermission,
                      "process {} may not make a userfaultfd: it needs CAP_SYS_PTRACE, or the host "
                      "vm.unprivileged_userfaultfd = 1; or a seccomp filter forbids it",
                      pid);
  }
  if (error == ENOSYS) {
    return make_error(ErrorKind::kUnsupported,
                      "the host's kernel, or a seccomp filter of process {}, has no userfaultfd", pid);
  }
  return errno_error(error, fmt::format("cannot make a userfaultfd in process {}", pid));
}

Error outcome_error(pid_t pid, const AttachOutcome& outcome) {
  // Any step may find the process killed.
  if (outcome.error == ESRCH) return vanished(pid);
  switch (outcome.step) {
    case AttachStep::kSeize: return seize_error(pid, outcome.error);
    case AttachStep::kInterrupt:
      return make_error(ErrorKind::kTimeout,
                        "the main thread of process {} did not stop within 2 s (state {}); it was let go",
                        pid, status_field(pid, "State"));
    case AttachStep::kMode: return make_error(ErrorKind::kUnsupported, "process {} runs 32-bit code", pid);
    case AttachStep::kStack:
      return errno_error(
          outcome.error,
          fmt::format("no room below the stack of process {}'s main thread at this moment", pid));
    case AttachStep::kCall: return call_error(pid, outcome.error);
    case AttachStep::kTake:
      if (outcome.error == ENOSYS) {
        return make_error(ErrorKind::kUnsupported, "the host's kernel has no pidfd_getfd (Linux 5.6)");
      }
      return errno_error(outcome.error, fmt::format("cannot take the userfaultfd of process {}", pid));
    case AttachStep::kTrapped:
      return make_error(ErrorKind::kIo, "a signal came in the middle of a call in process {}; undone", pid);
    case AttachStep::kUnfinished:
      return make_error(ErrorKind::kTimeout, "a call in process {} did not end within 2 s; it was let go",
                        pid);
    case AttachStep::kCode:
      return errno_error(outcome.error, fmt::format("process {} has changed its code", pid));
    case AttachStep::kGone: return vanished(pid);
    case AttachStep::kRegisters:
    case AttachStep::kDone: break;
  }
  return errno_error(outcome.error, fmt::format("cannot use the registers of process {}", pid));
}

struct Report {
  AttachReport said;
  UniqueFd taken;
};

/// None when the child ended without having said anything; a child that does not come to its end is killed.
std::optional<Report> receive_report(int link, pid_t child) {
  const auto deadline = std::chrono::steady_clock::now() + kAttachPatience;
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd poll{link, POLLIN, 0};
    const int ready = left.count() > 0 ? ::poll(&poll, 1, static_cast<int>(left.count())) : 0;
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      ::kill(child, SIGKILL);
      return std::nullopt;
    }
    Report report;
    iovec bytes{&report.said, sizeof report.said};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t n = ::recvmsg(link, &message, MSG_CMSG_CLOEXEC);
    if (n < 0 && errno == EINTR) continue;
    if (n != sizeof report.said) return std::nullopt;
    if (const cmsghdr* header = CMSG_FIRSTHDR(&message);
        header != nullptr && header->cmsg_type == SCM_RIGHTS) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
      report.taken = UniqueFd{fd};
    }
    return report;
  }
}

/// When the child is gone, the target is not traced any more.
void reap(pid_t child) {
  // ECHILD: somebody else reaped it, or SIGCHLD is ignored.
  while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
}

/// Does the task in process `pid` by a child of ours; `plan` says which.
Result<Report> attach(pid_t pid, AttachPlan plan) {
  VMSIEVE_ASSIGN(const UniqueFd handle, open_process(pid));
  plan.target = pid;
  plan.target_handle = handle.get();
  VMSIEVE_ASSIGN(plan.calls, plan_calls(pid));

  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return errno_error(errno, "cannot make the attach child's link");
  }
  const UniqueFd link{ends[0]};
  UniqueFd child_end{ends[1]};
  plan.link = child_end.get();

  pid_t child = -1;
  {
    const SignalBlock block;
    child = ::fork();
    if (child == 0) run_attach_child(plan);
  }
  if (child < 0) return errno_error(errno, "cannot fork the attach child");
  child_end.reset();
  std::optional<Report> report = receive_report(link.get(), child);
  reap(child);
  if (!report) return make_error(ErrorKind::kIo, "the attach child {} ended before its work was done", child);
  if (!report->said.outcome.ok()) return outcome_error(pid, report->said.outcome);
  return std::move(*report);
}

Error none_free() { return Error(ErrorKind::kIo, "no descriptor of ours is free"); }

}  // namespace

Result<UniqueFd> take_userfaultfd(pid_t pid, std::optional<int> device) {
  AttachPlan plan;
  plan.task = AttachTask::kMove;
  plan.device = device.value_or(-1);
  VMSIEVE_ASSIGN(Report report, attach(pid, plan));
  if (!report.taken.valid()) return none_free();
  return std::move(report.taken);
}

Result<SharedUserfaultfd> share_userfaultfd(pid_t pid) {
  AttachPlan plan;
  plan.task = AttachTask::kShare;
  VMSIEVE_ASSIGN(Report report, attach(pid, plan));
  if (!report.taken.valid()) return none_free();
  return SharedUserfaultfd{std::move(report.taken), report.said.descriptor};
}

Result<void> close_descriptor(pid_t pid, int descriptor) {
  AttachPlan plan;
  plan.task = AttachTask::kClose;
  plan.descriptor = descriptor;
  VMSIEVE_TRY(attach(pid, plan));
  return {};
}

}  // namespace vmsieve
