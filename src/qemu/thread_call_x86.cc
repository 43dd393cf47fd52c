// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)

#include <cpuid.h>
#include <elf.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string_view>
#include <vector>

#include "vmsieve/base/fd.h"
#include "vmsieve/qemu/proc_maps.h"
#include "vmsieve/qemu/process_memory.h"
#include "vmsieve/qemu/thread_call.h"

namespace vmsieve {

namespace {

using namespace std::string_view_literals;

// Every libc has the first two: its signal restorer, and the end of getpid and its like. So has ld.so.
constexpr std::string_view kCallCode = "\x0f\x05\xc3"sv;  // syscall; ret
constexpr std::string_view kSignalReturnCode =
    "\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05"sv;               // mov $15, %rax; syscall
constexpr std::string_view kPassResultCode = "\x97\xc3"sv;  // xchg %eax, %edi; ret
constexpr std::string_view kPopNumberCode = "\x58\xc3"sv;   // pop %rax; ret

constexpr u64 kUserCode64 = 0x33;  // __USER_CS, arch/x86/include/asm/segment.h
constexpr u64 kRedZone = 128;      // System V ABI, AMD64 supplement, 3.2.2

// What an interrupted call leaves in rax for the kernel's restart, include/linux/errno.h.
constexpr i64 kRestartSys = -512;
constexpr i64 kRestartNoIntr = -513;
constexpr i64 kRestartNoHand = -514;
constexpr i64 kRestartBlock = -516;

// struct _fpx_sw_bytes in the FXSAVE area, arch/x86/include/uapi/asm/sigcontext.h.
constexpr std::size_t kFpuSoftwareOffset = 464;
constexpr std::size_t kXsaveHeaderOffset = 512;
constexpr std::size_t kXsaveMinimum = 576;
constexpr u32 kFpuMagic1 = 0x46505853;
constexpr u32 kFpuMagic2 = 0x46505845;
struct FpuSoftwareBytes {
  u32 magic1;
  u32 extended_size;
  u64 features;
  u32 state_size;
};

/// struct rt_sigframe without the siginfo, which rt_sigreturn does not read
/// (arch/x86/include/asm/sigframe.h, uapi/asm/ucontext.h, uapi/asm/sigcontext.h).
struct SignalFrame {
  u64 return_address;
  u64 flags;
  u64 link;
  u64 alternate_stack;
  u64 alternate_stack_flags;
  u64 alternate_stack_size;
  u64 r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags;
  u16 cs, gs, fs, ss;
  u64 error, trap, old_mask, cr2;
  u64 fpu_state;
  u64 reserved[8];
  u64 signal_mask;
  u64 signal_info[16];
};
static_assert(sizeof(SignalFrame) == 8 + 304 + 128);

// UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS.
constexpr u64 kFrameFlags = 0x7;
// No mode that sigaltstack(2) knows: rt_sigreturn then leaves the alternate stack as it is
// (restore_altstack() in kernel/signal.c ignores everything but EFAULT). ptrace cannot read it.
constexpr u64 kKeepAlternateStack = 0x7f;

/// The words that the thread pops between the end of a call that made a descriptor and the frame.
struct ClosingWords {
  u64 pass_result;
  u64 pop_number;
  u64 number;
  u64 call;
};

void find(std::string_view code, u64 base, std::string_view bytes, u64& site) {
  if (site != 0) return;
  const std::size_t at = code.find(bytes);
  if (at != std::string_view::npos) site = base + at;
}

/// Code that nobody rewrites: of a file, or the vdso. Not what a JIT made.
bool is_lasting_code(const Vma& vma) {
  return vma.executable && vma.readable && !vma.shared && (vma.has_file() || vma.name == "[vdso]");
}

Result<CallSites> find_sites(pid_t pid) {
  VMSIEVE_ASSIGN(std::vector<Vma> maps, read_maps(pid));
  // The C library first: it usually has everything, and its pages are in.
  std::stable_partition(maps.begin(), maps.end(), [](const Vma& vma) {
    return vma.name.find("/libc.") != std::string::npos || vma.name.find("/libc-") != std::string::npos;
  });
  CallSites sites;
  std::vector<std::byte> bytes;
  for (const Vma& vma : maps) {
    if (!is_lasting_code(vma)) continue;
    bytes.resize(vma.end - vma.start);
    const auto read = read_process_memory(pid, HostVirtual{vma.start}, bytes);
    if (!read && read.error().kind() == ErrorKind::kVanished) return read.error();
    if (!read) continue;
    const std::string_view code{reinterpret_cast<const char*>(bytes.data()), bytes.size()};
    find(code, vma.start, kCallCode, sites.call);
    find(code, vma.start, kSignalReturnCode, sites.signal_return);
    find(code, vma.start, kPassResultCode, sites.pass_result);
    find(code, vma.start, kPopNumberCode, sites.pop_number);
    if (sites.call != 0 && sites.signal_return != 0 && sites.closes_result()) break;
  }
  if (sites.call != 0 && sites.signal_return != 0) return sites;
  return make_error(ErrorKind::kUnsupported,
                    "the code of process {} has no system call with a return, or no signal return", pid);
}

/// A shadow stack lets no `ret` go where no call came from.
Result<void> refuse_shadow_stack(pid_t pid) {
  auto status = read_text_file(fmt::format("/proc/{}/status", pid), kMiB);
  if (!status && status.error().kind() == ErrorKind::kNotFound) {
    return make_error(ErrorKind::kVanished, "process {} is gone", pid);
  }
  VMSIEVE_TRY(status);
  const std::size_t features = status->find("x86_Thread_features:");
  if (features == std::string::npos) return {};
  const std::string line = status->substr(features, status->find('\n', features) - features);
  if (line.find("shstk") == std::string::npos) return {};
  return make_error(ErrorKind::kUnsupported, "process {} runs with a shadow stack", pid);
}

AttachOutcome registers_failed() { return {AttachStep::kRegisters, errno}; }

AttachOutcome set_registers(pid_t thread, user_regs_struct& registers) {
  iovec whole{&registers, sizeof registers};
  if (::ptrace(PTRACE_SETREGSET, thread, NT_PRSTATUS, &whole) != 0) return registers_failed();
  return {};
}

AttachOutcome set_signal_mask(pid_t thread, u64 mask) {
  if (::ptrace(PTRACE_SETSIGMASK, thread, sizeof mask, &mask) != 0) return registers_failed();
  return {};
}

/// All but exceptions: one that comes while it is blocked would cost the process its handler.
u64 signals_that_can_wait() {
  u64 mask = ~u64{0};
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS})
    mask &= ~(u64{1} << (signal - 1));
  return mask;
}

/// What the kernel does when no signal is handled: interrupted calls begin again. Only those that continue
/// from the kernel's restart block, which rt_sigreturn discards, return EINTR instead.
void apply_restart(user_regs_struct& registers) {
  if (static_cast<i64>(registers.orig_rax) < 0) return;
  const auto result = static_cast<i64>(registers.rax);
  if (result == kRestartSys || result == kRestartNoIntr || result == kRestartNoHand) {
    registers.rax = registers.orig_rax;
    registers.rip -= 2;
  } else if (result == kRestartBlock) {
    registers.rax = static_cast<u64>(-EINTR);
  }
}

SignalFrame make_frame(user_regs_struct r, u64 signal_mask) {
  apply_restart(r);
  SignalFrame frame{};
  frame.flags = kFrameFlags;
  frame.alternate_stack_flags = kKeepAlternateStack;
  frame.r8 = r.r8;
  frame.r9 = r.r9;
  frame.r10 = r.r10;
  frame.r11 = r.r11;
  frame.r12 = r.r12;
  frame.r13 = r.r13;
  frame.r14 = r.r14;
  frame.r15 = r.r15;
  frame.rdi = r.rdi;
  frame.rsi = r.rsi;
  frame.rbp = r.rbp;
  frame.rbx = r.rbx;
  frame.rdx = r.rdx;
  frame.rax = r.rax;
  frame.rcx = r.rcx;
  frame.rsp = r.rsp;
  frame.rip = r.rip;
  frame.eflags = r.eflags;
  frame.cs = static_cast<u16>(r.cs);
  frame.ss = static_cast<u16>(r.ss);
  frame.signal_mask = signal_mask;
  return frame;
}

}  // namespace

Result<CallPlan> plan_calls(pid_t pid) {
  VMSIEVE_TRY(refuse_shadow_stack(pid));
  CallPlan plan;
  VMSIEVE_ASSIGN(plan.sites, find_sites(pid));
  for (unsigned component = 2; component < plan.fpu_component_end.size(); ++component) {
    unsigned size = 0;
    unsigned offset = 0;
    unsigned flags = 0;
    unsigned unused = 0;
    // Intel SDM, CPUID leaf 0DH. Bit 0 of ecx: a supervisor's component, which has no place in this layout.
    if (__get_cpuid_count(0xd, component, &size, &offset, &flags, &unused) == 0) break;
    if (size != 0 && (flags & 1) == 0) plan.fpu_component_end[component] = offset + size;
  }
  return plan;
}

AttachOutcome ThreadCall::read_state() {
  iovec whole{&registers_, sizeof registers_};
  if (::ptrace(PTRACE_GETREGSET, thread_, NT_PRSTATUS, &whole) != 0) return registers_failed();
  if (whole.iov_len != sizeof registers_ || registers_.cs != kUserCode64) return {AttachStep::kMode, 0};
  if (::ptrace(PTRACE_GETSIGMASK, thread_, sizeof signal_mask_, &signal_mask_) != 0)
    return registers_failed();
  iovec fpu{fpu_.data(), kFpuBytes};
  if (::ptrace(PTRACE_GETREGSET, thread_, NT_X86_XSTATE, &fpu) != 0) return registers_failed();
  fpu_length_ = complete_fpu_state(fpu.iov_len);
  if (fpu_length_ == 0) return {AttachStep::kRegisters, EOVERFLOW};
  return {};
}

/// ptrace gives the layout of a signal frame but for the software bytes. Stating a length of more than the
/// thread may use (AMX without permission) would make rt_sigreturn drop all but the SSE state, so it ends
/// with the last component in use.
std::size_t ThreadCall::complete_fpu_state(std::size_t length) {
  if (length < kXsaveMinimum) return 0;
  u64 possible = 0;  // XCR0, which ptrace puts where the software bytes will be
  u64 used = 0;
  std::memcpy(&possible, fpu_.data() + kFpuSoftwareOffset, sizeof possible);
  std::memcpy(&used, fpu_.data() + kXsaveHeaderOffset, sizeof used);
  std::size_t end = kXsaveMinimum;
  for (std::size_t component = 2; component < 64; ++component) {
    if ((used >> component & 1) == 0) continue;
    const std::size_t component_end = plan_.fpu_component_end[component];
    if (component_end == 0 || component_end > length) return 0;
    end = std::max(end, component_end);
  }
  const FpuSoftwareBytes software{kFpuMagic1, static_cast<u32>(end + sizeof kFpuMagic2), possible | 3,
                                  static_cast<u32>(end)};
  std::memset(fpu_.data() + kFpuSoftwareOffset, 0, kXsaveHeaderOffset - kFpuSoftwareOffset);
  std::memcpy(fpu_.data() + kFpuSoftwareOffset, &software, sizeof software);
  std::memcpy(fpu_.data() + end, &kFpuMagic2, sizeof kFpuMagic2);
  return end + sizeof kFpuMagic2;
}

AttachOutcome ThreadCall::check_code() const {
  const struct {
    u64 site;
    std::string_view code;
  } all[] = {{plan_.sites.call, kCallCode},
             {plan_.sites.signal_return, kSignalReturnCode},
             {plan_.sites.pass_result, kPassResultCode},
             {plan_.sites.pop_number, kPopNumberCode}};
  for (const auto& one : all) {
    if (one.site == 0) continue;
    char bytes[16];
    const iovec local{bytes, one.code.size()};
    const iovec remote{reinterpret_cast<void*>(one.site), one.code.size()};
    const ssize_t n = ::process_vm_readv(thread_, &local, 1, &remote, 1, 0);
    if (n < 0) return {AttachStep::kCode, errno};
    if (std::string_view{bytes, static_cast<std::size_t>(n)} != one.code) return {AttachStep::kCode, EFAULT};
  }
  return {};
}

AttachOutcome ThreadCall::prepare() {
  if (const AttachOutcome read = read_state(); !read.ok()) return read;
  if (const AttachOutcome checked = check_code(); !checked.ok()) return checked;

  const u64 fpu = round_down(registers_.rsp - kRedZone - fpu_length_, 64);
  // Aligned as the kernel does it: 16 bytes, less the return address.
  frame_ = round_down(fpu - sizeof(SignalFrame), 16) - 8;
  SignalFrame frame = make_frame(registers_, signal_mask_);
  frame.return_address = plan_.sites.signal_return;
  frame.fpu_state = fpu;
  ClosingWords closing{plan_.sites.pass_result, plan_.sites.pop_number, SYS_close, plan_.sites.call};

  // Addresses of the other process, never followed here. Unlike /proc/PID/mem this does not write to
  // what the process may not write to itself.
  const u64 begin = frame_ - sizeof closing;
  iovec local[] = {{&closing, sizeof closing}, {&frame, sizeof frame}, {fpu_.data(), fpu_length_}};
  iovec remote[] = {{reinterpret_cast<void*>(begin), sizeof closing},
                    {reinterpret_cast<void*>(frame_), sizeof frame},
                    {reinterpret_cast<void*>(fpu), fpu_length_}};
  const ssize_t n = ::process_vm_writev(thread_, local, 3, remote, 3, 0);
  if (n < 0) return {AttachStep::kStack, errno};
  if (static_cast<std::size_t>(n) != sizeof closing + sizeof frame + fpu_length_)
    return {AttachStep::kStack, EFAULT};
  return {};
}

AttachOutcome ThreadCall::start(long number, std::array<u64, 3> arguments, bool makes_descriptor) {
  user_regs_struct registers = registers_;
  registers.rip = plan_.sites.call;
  registers.rsp = makes_descriptor && plan_.sites.closes_result() ? frame_ - sizeof(ClosingWords) : frame_;
  registers.rax = static_cast<u64>(number);
  registers.rdi = arguments[0];
  registers.rsi = arguments[1];
  registers.rdx = arguments[2];
  // Not in a system call, as far as restarting goes.
  registers.orig_rax = ~u64{0};
  if (const AttachOutcome set = set_registers(thread_, registers); !set.ok()) return set;
  if (masked_) return {};
  // Only now: the way back restores the mask as well.
  if (const AttachOutcome set = set_signal_mask(thread_, signals_that_can_wait()); !set.ok()) return set;
  masked_ = true;
  return {};
}

AttachOutcome ThreadCall::read_result(long& result) const {
  user_regs_struct registers{};
  iovec whole{&registers, sizeof registers};
  if (::ptrace(PTRACE_GETREGSET, thread_, NT_PRSTATUS, &whole) != 0) return registers_failed();
  result = static_cast<long>(registers.rax);
  return {};
}

AttachOutcome ThreadCall::restore() {
  // In this order: as long as the registers are ours, the way back restores the mask.
  if (const AttachOutcome set = set_signal_mask(thread_, signal_mask_); !set.ok()) return set;
  return set_registers(thread_, registers_);
}

}  // namespace vmsieve

#endif
