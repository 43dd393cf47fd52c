// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/kernel_symbols.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_allocator.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Optional;
using vmsieve::testing::FakeAllocator;
using vmsieve::testing::FakeAllocatorOptions;

class KernelSymbolsTest : public ::testing::Test {
 protected:
  Result<KernelSymbols> read() { return KernelSymbols::read(made.guest().memory(), made.guest().kernel()); }
  Error failure() {
    const auto found = read();
    return found.ok() ? Error(ErrorKind::kUsage, "no failure") : found.error();
  }
  Result<std::vector<u64>> cpu_offsets() {
    const auto symbols = read();
    VMSIEVE_CHECK(symbols.ok());
    return read_cpu_offsets(made.guest().memory(), made.guest().kernel().page_tables(), *symbols);
  }

  FakeAllocator made;
};

TEST_F(KernelSymbolsTest, ReadsNamesAndTypesWhereVmcoreInfoSays) {
  const auto found = read();
  ASSERT_TRUE(found.ok()) << found.error().message();
  EXPECT_THAT(found->symbols().address("hugetlb_lock"),
              Optional(FakeAllocator::image(FakeAllocator::kHugetlbLock)));
  EXPECT_EQ(found->types().size_of("zone"), 1024u);
}

TEST_F(KernelSymbolsTest, SearchesTheImageWhenVmcoreInfoDoesNotSay) {
  made.guest().set_key("SYMBOL(kallsyms_names)", "");
  const auto found = read();
  ASSERT_TRUE(found.ok()) << found.error().message();
  EXPECT_EQ(found->types().size_of("zone"), 1024u);
}

TEST_F(KernelSymbolsTest, SearchesTheImageWhenVmcoreInfoIsWrong) {
  made.guest().set_key("SYMBOL(kallsyms_names)", "ffffffff81000000");
  EXPECT_TRUE(read().ok());
}

TEST_F(KernelSymbolsTest, KernelWithoutNamesIsAnError) {
  made.guest().memory().write(FakeAllocator::kKallsyms, std::vector<std::byte>(64 * kKiB));
  EXPECT_EQ(failure().kind(), ErrorKind::kNotFound);
}

TEST_F(KernelSymbolsTest, KernelWithoutTypesIsAnError) {
  made.remove_symbol("__stop_BTF");
  EXPECT_EQ(failure().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(failure().message(), "the kernel has no BTF");
}

TEST_F(KernelSymbolsTest, TypesThatEndBeforeTheyBeginAreAnError) {
  made.move_symbol("__stop_BTF", FakeAllocator::image(FakeAllocator::kBtf));
  EXPECT_THAT(failure().message(), HasSubstr("makes no sense"));
}

TEST_F(KernelSymbolsTest, TypesThatAreTooLargeAreAnErrorBeforeTheyAreRead) {
  made.move_symbol("__stop_BTF", FakeAllocator::image(FakeAllocator::kBtf) + Btf::kMaxBytes + 1);
  EXPECT_THAT(failure().message(), HasSubstr("makes no sense"));
}

TEST_F(KernelSymbolsTest, TypesThatAreNotMappedAreAnError) {
  made.move_symbol("__stop_BTF", FakeAllocator::image(FakeAllocator::kBtf) + 16 * kMiB);
  EXPECT_EQ(failure().kind(), ErrorKind::kNotFound);
}

TEST_F(KernelSymbolsTest, TypesThatAreDamagedAreAnError) {
  made.guest().memory().write_le(FakeAllocator::kBtf, u32{0});
  EXPECT_EQ(failure().kind(), ErrorKind::kDamaged);
}

TEST_F(KernelSymbolsTest, GuestThatCannotBeReadIsAnError) {
  const LinuxKernel kernel = made.guest().kernel();
  made.guest().memory().fail_reads = true;
  EXPECT_FALSE(KernelSymbols::read(made.guest().memory(), kernel).ok());
}

// ---- offsets of CPUs ----

TEST_F(KernelSymbolsTest, GivesOffsetOfEachPossibleCpu) {
  const auto offsets = cpu_offsets();
  ASSERT_TRUE(offsets.ok()) << offsets.error().message();
  EXPECT_THAT(*offsets, ElementsAre(made.cpu_offset(0), made.cpu_offset(1)));
}

TEST_F(KernelSymbolsTest, PassesOverNumbersThatAreNoCpu) {
  made.guest().memory().write_le(FakeAllocator::kPossibleMask, u64{0b1010});
  made.guest().memory().write_le(FakeAllocator::kCpuOffsets + 24, u64{0x1234});
  EXPECT_THAT(*cpu_offsets(), ElementsAre(made.cpu_offset(1), 0x1234u));
}

TEST_F(KernelSymbolsTest, KernelWithoutCpusIsUnsupported) {
  made.guest().memory().write_le(FakeAllocator::kPossibleMask, u64{0});
  EXPECT_EQ(cpu_offsets().error().kind(), ErrorKind::kUnsupported);
}

TEST_F(KernelSymbolsTest, MissingNamesOfPerCpuDataAreUnsupported) {
  for (const char* name : {"__per_cpu_offset", "__cpu_possible_mask"}) {
    FakeAllocator other;
    other.remove_symbol(name);
    const auto symbols = KernelSymbols::read(other.guest().memory(), other.guest().kernel());
    ASSERT_TRUE(symbols.ok());
    const auto offsets =
        read_cpu_offsets(other.guest().memory(), other.guest().kernel().page_tables(), *symbols);
    ASSERT_FALSE(offsets.ok()) << name;
    EXPECT_EQ(offsets.error().kind(), ErrorKind::kUnsupported);
  }
}

TEST_F(KernelSymbolsTest, MaskForMoreCpusThanLinuxKnowsIsUnsupported) {
  FakeAllocator other({.cpumask_bytes = 1032});
  const auto symbols = KernelSymbols::read(other.guest().memory(), other.guest().kernel());
  ASSERT_TRUE(symbols.ok());
  EXPECT_EQ(
      read_cpu_offsets(other.guest().memory(), other.guest().kernel().page_tables(), *symbols).error().kind(),
      ErrorKind::kUnsupported);
}

TEST_F(KernelSymbolsTest, OffsetsThatAreNotMappedAreAnError) {
  made.move_symbol("__per_cpu_offset", GuestVirtual{0xffff'ffff'8140'0000 - 8});
  EXPECT_FALSE(cpu_offsets().ok());
}

TEST_F(KernelSymbolsTest, MaskThatIsNotMappedIsAnError) {
  made.move_symbol("__cpu_possible_mask", GuestVirtual{0xffff'ffff'f000'0000});
  EXPECT_FALSE(cpu_offsets().ok());
}

}  // namespace
}  // namespace vmsieve
