// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/ramblock_search.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmsieve {
namespace {

using testing::HasSubstr;

/// A structure as QEMU might have it, with the members at places of its own.
struct __attribute__((packed)) FakeBlock {
  u64 head[3];
  u64 host;
  u64 cache;
  u64 offset;
  u64 used;
  u64 total;
  u64 resized;
  u32 flags;
  char idstr[256];
  u64 next;
};

/// A child process holds the structures, in memory of its own kind, so that this process's copies of the
/// names do not get in the way.
class RamblockSearch : public testing::Test {
 protected:
  static constexpr u64 kArenaBytes = 4 * kMiB;

  void SetUp() override {
    arena_ = map(kArenaBytes);
    ram_ = map(kMiB);
    rom_ = map(kMiB);
    other_ = map(kMiB);
  }
  void TearDown() override {
    if (child_ > 0) {
      ::kill(child_, SIGKILL);
      ::waitpid(child_, nullptr, 0);
    }
    for (char* at : {arena_, ram_, rom_, other_}) ::munmap(at, at == arena_ ? kArenaBytes : kMiB);
  }

  static char* map(u64 bytes) {
    return static_cast<char*>(
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  }
  /// Names of this test alone: what earlier tests left on the heap must not be found.
  static std::string ram_name() { return own_name("ram"); }
  static std::string rom_name() { return own_name("rom"); }
  static std::string own_name(const char* block) {
    return fmt::format("{}-{}", testing::UnitTest::GetInstance()->current_test_info()->name(), block);
  }
  static u64 number(const char* at) { return reinterpret_cast<u64>(at); }

  void put(u64 at, const std::string& name, u64 host, u64 used, u64 total) {
    FakeBlock block{};
    block.head[0] = 0x5555;
    block.host = host;
    block.offset = 0x100000;
    block.used = used;
    block.total = total;
    block.flags = 0xffffffff;
    std::strncpy(block.idstr, name.c_str(), sizeof block.idstr - 1);
    std::memcpy(arena_ + at, &block, sizeof block);
  }

  Result<void> search(std::vector<RamblockTarget>& targets) {
    child_ = ::fork();
    if (child_ == 0) {
      for (;;) ::pause();
    }
    const auto maps = read_maps(child_);
    EXPECT_TRUE(maps);
    return find_ramblock_hosts(child_, *maps, targets);
  }

  std::vector<RamblockTarget> two_targets() const {
    return {{ram_name(), kMiB, kMiB, HostVirtual{number(ram_)}}, {rom_name(), 0x3000, 0x9000, {}}};
  }

  char* arena_ = nullptr;
  char* ram_ = nullptr;
  char* rom_ = nullptr;
  char* other_ = nullptr;
  pid_t child_ = -1;
};

TEST_F(RamblockSearch, FindsABlockByTheMeasuredPlaces) {
  put(1000, ram_name(), number(ram_), kMiB, kMiB);
  // Across the border of two chunks.
  put(kMiB - 100, rom_name(), number(rom_), 0x3000, 0x9000);
  auto targets = two_targets();
  const auto found = search(targets);
  ASSERT_TRUE(found) << found.error().message();
  EXPECT_EQ(targets[1].host, HostVirtual{number(rom_)});
}

TEST_F(RamblockSearch, StaleCopyWithOtherSizesIsNoMatter) {
  put(1000, ram_name(), number(ram_), kMiB, kMiB);
  put(5000, rom_name(), number(other_), 0x4000, 0x9000);
  put(9000, rom_name(), number(rom_), 0x3000, 0x9000);
  put(13000, rom_name(), 0x1000, 0x3000, 0x9000);
  put(17000, rom_name() + "-2", number(other_), 0x3000, 0x9000);
  auto targets = two_targets();
  const auto found = search(targets);
  ASSERT_TRUE(found) << found.error().message();
  EXPECT_EQ(targets[1].host, HostVirtual{number(rom_)});
}

TEST_F(RamblockSearch, TwoPossibleAddressesAreRefused) {
  put(1000, ram_name(), number(ram_), kMiB, kMiB);
  put(5000, rom_name(), number(other_), 0x3000, 0x9000);
  put(9000, rom_name(), number(rom_), 0x3000, 0x9000);
  auto targets = two_targets();
  const auto found = search(targets);
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().kind(), ErrorKind::kUnsupported);
  EXPECT_THAT(found.error().message(), HasSubstr(rom_name()));
}

TEST_F(RamblockSearch, MissingBlockIsNamed) {
  put(1000, ram_name(), number(ram_), kMiB, kMiB);
  auto targets = two_targets();
  const auto found = search(targets);
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().kind(), ErrorKind::kUnsupported);
  EXPECT_THAT(found.error().message(), HasSubstr("'" + rom_name() + "'"));
}

TEST_F(RamblockSearch, AddressThatIsNotMappedIsNotTaken) {
  put(1000, ram_name(), number(ram_), kMiB, kMiB);
  put(5000, rom_name(), 0x7000, 0x3000, 0x9000);
  auto targets = two_targets();
  EXPECT_FALSE(search(targets));
}

TEST_F(RamblockSearch, WithoutAnyKnownAddressNothingIsAccepted) {
  put(1000, rom_name(), number(rom_), 0x3000, 0x9000);
  std::vector<RamblockTarget> targets{{rom_name(), 0x3000, 0x9000, {}}};
  EXPECT_FALSE(search(targets));
}

TEST_F(RamblockSearch, ProcessThatIsGoneHasVanished) {
  auto targets = two_targets();
  EXPECT_EQ(find_ramblock_hosts(999999999, {}, targets).error().kind(), ErrorKind::kVanished);
}

}  // namespace
}  // namespace vmsieve
