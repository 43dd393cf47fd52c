// SPDX-License-Identifier: Apache-2.0
#include "unit/qemu/victim.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <new>
#include <thread>

#include <fmt/format.h>

namespace vmsieve::test {

namespace {

using namespace std::chrono_literals;

bool eventually(std::chrono::milliseconds patience, const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
    std::this_thread::sleep_for(200us);
  }
  return true;
}

}  // namespace

Victim::Victim(const std::function<void(VictimBoard&)>& life) {
  void* shared = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) std::abort();
  board_ = new (shared) VictimBoard;
  pid_ = ::fork();
  if (pid_ < 0) std::abort();
  if (pid_ > 0) return;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  life(*board_);
  ::_exit(0);
}

Victim::~Victim() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  ::munmap(board_, kPageSize);
}

char Victim::state() const {
  const auto status = read_text_file(fmt::format("/proc/{}/status", pid_), kMiB);
  if (!status) return '?';
  const std::size_t at = status->find("\nState:\t");
  return at == std::string::npos ? '?' : (*status)[at + 8];
}

bool Victim::alive() const {
  const char letter = state();
  return letter != '?' && letter != 'Z' && letter != 'X';
}

bool Victim::reaches_state(char wanted) const {
  return eventually(2s, [&] { return state() == wanted; });
}

bool Victim::makes_rounds(u64 count) const {
  const u64 goal = board_->rounds + count;
  return eventually(5s, [&] { return board_->rounds >= goal || !alive(); }) && alive();
}

int Victim::exit_code() {
  int status = 0;
  if (!eventually(5s, [&] { return ::waitpid(pid_, &status, WNOHANG) == pid_; })) return -1;
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

std::size_t Victim::descriptors() const {
  const std::filesystem::path folder = fmt::format("/proc/{}/fd", pid_);
  return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator{folder}, {}));
}

std::size_t Victim::userfaultfds() const {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator{fmt::format("/proc/{}/fd", pid_)}) {
    std::error_code ignored;
    if (std::filesystem::read_symlink(entry, ignored).string().find("[userfaultfd]") != std::string::npos)
      ++count;
  }
  return count;
}

#if defined(__x86_64__)

namespace {

struct RegisterFile {
  u64 general[11];  // rax rbx rdx rsi r8 ... r14; rcx counts, rdi and r15 hold the addresses
  u64 carry;
  u64 x87;
  u64 unused;
  u64 red_zone[2];
  alignas(32) u64 vectors[16][4];
};

#define VMSIEVE_VECTORS(X) \
  X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define VMSIEVE_LOAD_YMM(N) "vmovdqa " #N "*32(%%r15), %%ymm" #N "\n\t"
#define VMSIEVE_STORE_YMM(N) "vmovdqa %%ymm" #N ", " #N "*32(%%r15)\n\t"
#define VMSIEVE_LOAD_XMM(N) "movdqa " #N "*32(%%r15), %%xmm" #N "\n\t"
#define VMSIEVE_STORE_XMM(N) "movdqa %%xmm" #N ", " #N "*32(%%r15)\n\t"

// Everything is loaded, `loop` spins without touching the flags, everything is stored back. The stack pointer
// moves beyond the compiler's red zone first.
#define VMSIEVE_HOLD(LOAD, STORE) \
  asm volatile(                                                                                          \
      "lea -128(%%rsp), %%rsp\n\tmov 112(%%rdi), %%rax\n\tmov %%rax, -8(%%rsp)\n\t"                        \
      "mov 120(%%rdi), %%rax\n\tmov %%rax, -128(%%rsp)\n\t"                                              \
      "fninit\n\tfldl 96(%%rdi)\n\t" VMSIEVE_VECTORS(LOAD)                                               \
      "mov 0(%%rdi), %%rax\n\tmov 8(%%rdi), %%rbx\n\tmov 16(%%rdi), %%rdx\n\tmov 24(%%rdi), %%rsi\n\t"   \
      "mov 32(%%rdi), %%r8\n\tmov 40(%%rdi), %%r9\n\tmov 48(%%rdi), %%r10\n\tmov 56(%%rdi), %%r11\n\t"   \
      "mov 64(%%rdi), %%r12\n\tmov 72(%%rdi), %%r13\n\tmov 80(%%rdi), %%r14\n\tstc\n\t"                  \
      "1: loop 1b\n\t"                                                                                   \
      "mov %%rax, 0(%%rdi)\n\tmov %%rbx, 8(%%rdi)\n\tmov %%rdx, 16(%%rdi)\n\tmov %%rsi, 24(%%rdi)\n\t"   \
      "mov %%r8, 32(%%rdi)\n\tmov %%r9, 40(%%rdi)\n\tmov %%r10, 48(%%rdi)\n\tmov %%r11, 56(%%rdi)\n\t"   \
      "mov %%r12, 64(%%rdi)\n\tmov %%r13, 72(%%rdi)\n\tmov %%r14, 80(%%rdi)\n\tsetc 88(%%rdi)\n\t"       \
      "mov -8(%%rsp), %%rax\n\tmov %%rax, 112(%%rdi)\n\tmov -128(%%rsp), %%rax\n\t"                       \
      "mov %%rax, 120(%%rdi)\n\tlea 128(%%rsp), %%rsp\n\t"                                               \
      "fstpl 96(%%rdi)\n\t" VMSIEVE_VECTORS(STORE)                                                       \
      : "+c"(spins), "+D"(file), "+r"(vectors)                                                           \
      :                                                                                                  \
      : "rax", "rbx", "rdx", "rsi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "memory", "cc", "st", \
        VMSIEVE_VECTOR_CLOBBERS)
#define VMSIEVE_VECTOR_CLOBBERS                                                                              \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
      "xmm13", "xmm14", "xmm15"

__attribute__((target("avx"), noinline)) void hold_avx(RegisterFile* file, u64 spins) {
  register u64(*vectors)[4] asm("r15") = file->vectors;
  VMSIEVE_HOLD(VMSIEVE_LOAD_YMM, VMSIEVE_STORE_YMM);
}

__attribute__((noinline)) void hold_sse(RegisterFile* file, u64 spins) {
  register u64(*vectors)[4] asm("r15") = file->vectors;
  VMSIEVE_HOLD(VMSIEVE_LOAD_XMM, VMSIEVE_STORE_XMM);
}

}  // namespace

bool registers_survive(u64 spins) {
  static const bool avx = __builtin_cpu_supports("avx");
  static u64 seed = 0;
  RegisterFile before{};
  for (u64& value : before.general) value = ++seed * 0x9e3779b97f4a7c15;
  for (auto& vector : before.vectors) {
    for (u64& value : vector) value = ++seed * 0x9e3779b97f4a7c15;
  }
  const double number = 1.0 / static_cast<double>(seed);
  std::memcpy(&before.x87, &number, sizeof number);
  for (u64& value : before.red_zone) value = ++seed * 0x9e3779b97f4a7c15;
  before.carry = 1;
  RegisterFile after = before;
  after.carry = 0;
  if (avx) {
    hold_avx(&after, spins);
  } else {
    hold_sse(&after, spins);
  }
  return std::memcmp(&before, &after, sizeof before) == 0;
}

#else

bool registers_survive(u64) { return true; }

#endif

}  // namespace vmsieve::test
