// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/shared_mappings.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <thread>

#include <gtest/gtest.h>

#include "unit/qemu/victim.h"
#include "vmsieve/base/fd.h"

namespace vmsieve {
namespace {

using namespace std::chrono_literals;
using test::Victim;
using test::VictimBoard;

constexpr u64 kBytes = 64 * kPageSize;

UniqueFd sized_memfd() {
  auto fd = make_memfd("ram");
  if (!fd || ::ftruncate(fd->get(), kBytes) != 0) std::abort();
  return std::move(*fd);
}

/// A life that maps memory, tells where, and waits.
std::function<void(VictimBoard&)> maps(int flags, int fd = -1) {
  return [=](VictimBoard& board) {
    board.address = reinterpret_cast<u64>(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, flags, fd, 0));
    board.rounds = 1;
    for (;;) ::pause();
  };
}

RamBlock block_of(const Victim& victim) {
  for (int i = 0; i < 5000 && victim.board().rounds == 0; ++i) std::this_thread::sleep_for(1ms);
  return {
      .name = "ram", .used_bytes = kBytes, .max_bytes = kBytes, .host = HostVirtual{victim.board().address}};
}

/// The other process's number; 0 when there is none, -1 on an error.
pid_t other_with_memory_of(const Victim& victim) {
  const auto other = other_process_with_memory(victim.pid(), {{block_of(victim)}, {}});
  if (!other) {
    ADD_FAILURE() << other.error().message();
    return -1;
  }
  return other->value_or(0);
}

TEST(SharedMappings, PrivateMemoryIsNobodyElses) {
  const Victim qemu{maps(MAP_PRIVATE | MAP_ANONYMOUS)};
  EXPECT_EQ(other_with_memory_of(qemu), 0);
}

TEST(SharedMappings, SharedMemoryOfOneProcessAlone) {
  const UniqueFd fd = sized_memfd();
  const Victim qemu{maps(MAP_SHARED, fd.get())};
  EXPECT_EQ(other_with_memory_of(qemu), 0);
}

TEST(SharedMappings, AnotherProcessWithTheSameFileIsFound) {
  const UniqueFd fd = sized_memfd();
  const Victim qemu{maps(MAP_SHARED, fd.get())};
  const Victim backend{maps(MAP_SHARED, fd.get())};
  block_of(backend);
  EXPECT_EQ(other_with_memory_of(qemu), backend.pid());
}

TEST(SharedMappings, ItIsForgottenWhenItIsGone) {
  const UniqueFd fd = sized_memfd();
  const Victim qemu{maps(MAP_SHARED, fd.get())};
  {
    const Victim backend{maps(MAP_SHARED, fd.get())};
    block_of(backend);
    ASSERT_EQ(other_with_memory_of(qemu), backend.pid());
  }
  EXPECT_EQ(other_with_memory_of(qemu), 0);
}

TEST(SharedMappings, AnotherProcessesOtherFileIsNoMatter) {
  const UniqueFd fd = sized_memfd();
  const UniqueFd another = sized_memfd();
  const Victim qemu{maps(MAP_SHARED, fd.get())};
  const Victim backend{maps(MAP_SHARED, another.get())};
  block_of(backend);
  EXPECT_EQ(other_with_memory_of(qemu), 0);
}

TEST(SharedMappings, APrivateMappingOfTheFileWritesNothing) {
  const UniqueFd fd = sized_memfd();
  const Victim qemu{maps(MAP_SHARED, fd.get())};
  const Victim reader{maps(MAP_PRIVATE, fd.get())};
  block_of(reader);
  EXPECT_EQ(other_with_memory_of(qemu), 0);
}

TEST(SharedMappings, OurOwnMappingDoesNotCount) {
  const UniqueFd fd = sized_memfd();
  void* const ours = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(ours, MAP_FAILED);
  const Victim qemu{[&](VictimBoard& board) {
    board.address = reinterpret_cast<u64>(ours);
    board.rounds = 1;
    for (;;) ::pause();
  }};
  EXPECT_EQ(other_with_memory_of(qemu), 0);
  ::munmap(ours, kBytes);
}

TEST(SharedMappings, AForkedProcessSharesAnonymousSharedMemory) {
  const Victim qemu{[](VictimBoard& board) {
    void* at = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    board.address = reinterpret_cast<u64>(at);
    const pid_t child = ::fork();
    if (child == 0) {
      for (;;) ::pause();
    }
    board.result = child;
    board.rounds = 1;
    for (;;) ::pause();
  }};
  const pid_t other = other_with_memory_of(qemu);
  const pid_t child = static_cast<pid_t>(qemu.board().result);
  EXPECT_EQ(other, child);
  if (child > 0) ::kill(child, SIGKILL);
}

TEST(SharedMappings, OneSharedBlockAmongPrivateOnesIsEnough) {
  const UniqueFd fd = sized_memfd();
  const Victim qemu{[&](VictimBoard& board) {
    board.result = reinterpret_cast<i64>(
        ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    maps(MAP_SHARED, fd.get())(board);
  }};
  const Victim backend{maps(MAP_SHARED, fd.get())};
  block_of(backend);
  const RamBlock shared = block_of(qemu);
  RamBlock own = shared;
  own.host = HostVirtual{static_cast<u64>(qemu.board().result.load())};
  const auto other = other_process_with_memory(qemu.pid(), {{own, shared}, {}});
  ASSERT_TRUE(other) << other.error().message();
  EXPECT_EQ(*other, backend.pid());
}

TEST(SharedMappings, ProcessThatIsGoneHasVanished) {
  const auto other = other_process_with_memory(999999999, {});
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().kind(), ErrorKind::kVanished);
}

}  // namespace
}  // namespace vmsieve
