// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/linux_kernel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_guest.h"
#include "vmsieve/guest/vmcoreinfo_search.h"

namespace vmsieve {
namespace {

using ::testing::HasSubstr;
using vmsieve::testing::FakeGuest;
using vmsieve::testing::FakeGuestOptions;

Result<void> prove(FakeGuest& guest, std::vector<X86Vcpu> vcpus) {
  return guest.kernel().prove_live(guest.memory(), vcpus);
}

std::string reason(const Result<void>& result) {
  if (result.ok()) return "proved";
  EXPECT_EQ(result.error().kind(), ErrorKind::kIncompatible) << result.error().message();
  return result.error().message();
}

Result<LinuxKernel> find(FakeGuest& guest) {
  const X86Vcpu vcpu = guest.vcpu();
  return find_linux_kernel(guest.memory(), std::vector{vcpu});
}

std::string why_not_found(FakeGuest& guest) {
  const auto kernel = find(guest);
  if (kernel.ok()) return "found";
  const bool there = kernel.error().message().find("no VMCOREINFO") == std::string::npos;
  EXPECT_EQ(kernel.error().kind(), there ? ErrorKind::kIncompatible : ErrorKind::kNotFound);
  return kernel.error().message();
}

// ---- what prove_live() accepts ----

TEST(ProveLive, AcceptsUserModeUnderTablesOfAProcess) {
  FakeGuest guest;
  EXPECT_EQ(reason(prove(guest, {guest.vcpu()})), "proved");
}

TEST(ProveLive, AcceptsFiveLevels) {
  FakeGuest guest({.levels = 5});
  EXPECT_EQ(reason(prove(guest, {guest.vcpu()})), "proved");
}

TEST(ProveLive, AcceptsKernelModeUnderSwapperTables) {
  FakeGuest guest;
  X86Vcpu vcpu = guest.vcpu();
  vcpu.cr3 = guest.kernel().page_tables().top.value;
  vcpu.cpl = 0;
  vcpu.rip = 0xffff'ffff'8100'1000;
  vcpu.halted = true;  // idle
  EXPECT_EQ(reason(prove(guest, {vcpu})), "proved");
}

TEST(ProveLive, AcceptsUserTablesOfPageTableIsolation) {
  FakeGuest guest;
  X86Vcpu vcpu = guest.vcpu();
  vcpu.cr3 |= 1 << 12;
  EXPECT_EQ(reason(prove(guest, {vcpu})), "proved");
}

TEST(ProveLive, AcceptsTablesAtAnOddPageWithoutIsolation) {
  FakeGuest guest;
  for (u64 i = 256; i < 512; ++i) {
    const GuestPhysical entry = FakeGuest::kProcessTop + i * 8;
    guest.memory().write_le(entry + kPageSize, guest.memory().read_u64(entry));
    guest.memory().write_le(entry, u64{0});
  }
  X86Vcpu vcpu = guest.vcpu();
  vcpu.cr3 |= 1 << 12;
  EXPECT_EQ(reason(prove(guest, {vcpu})), "proved");
}

TEST(ProveLive, AcceptsHaltedVcpuWithPagingOffBesideAProvedOne) {
  FakeGuest guest;
  X86Vcpu waiting;
  waiting.index = 1;
  waiting.halted = true;
  EXPECT_EQ(reason(prove(guest, {guest.vcpu(), waiting})), "proved");
}

// ---- check A ----

TEST(ProveLive, RefusesTextThatChanged) {
  FakeGuest guest;
  const LinuxKernel kernel = guest.kernel();
  guest.memory().write_le(FakeGuest::kDataPage + 11, u8{'7'});
  const X86Vcpu vcpu = guest.vcpu();
  EXPECT_THAT(reason(kernel.prove_live(guest.memory(), std::vector{vcpu})),
              HasSubstr("no longer at 0x1100000"));
}

// ---- check B ----

TEST(ProveLive, RefusesTablesThatDoNotMapKernelText) {
  FakeGuest guest;
  guest.memory().write_le(guest.tables().entry(GuestVirtual{0xffffffff81000000}, 21), u64{0});
  EXPECT_THAT(reason(prove(guest, {guest.vcpu()})), HasSubstr("do not map its text"));
}

TEST(ProveLive, RefusesTablesThatMapKernelTextElsewhere) {
  FakeGuest guest;
  guest.tables().map(GuestVirtual{0xffffffff81000000}, GuestPhysical{0x140'0000}, 21);
  EXPECT_THAT(reason(prove(guest, {guest.vcpu()})), HasSubstr("map its text at 0x1400000, not at 0x1200000"));
}

// ---- check C ----

TEST(ProveLive, RefusesForeignTables) {
  FakeGuest guest;
  X86Vcpu vcpu = guest.vcpu();
  vcpu.cr3 = 0x118'0000;
  EXPECT_THAT(reason(prove(guest, {vcpu})), HasSubstr("does not run under the page tables"));
}

TEST(ProveLive, RefusesTablesOutsideRam) {
  FakeGuest guest;
  X86Vcpu vcpu = guest.vcpu();
  vcpu.cr3 = 0x7'0000'0000;
  EXPECT_THAT(reason(prove(guest, {vcpu})), HasSubstr("does not run under the page tables"));
}

TEST(ProveLive, RefusesWhenOneVcpuOfTwoIsElsewhere) {
  FakeGuest guest;
  X86Vcpu other = guest.vcpu(1);
  other.cr3 = 0x118'0000;
  EXPECT_THAT(reason(prove(guest, {guest.vcpu(), other})), HasSubstr("vCPU 1"));
}

TEST(ProveLive, RefusesOtherNumberOfLevels) {
  FakeGuest guest;
  X86Vcpu vcpu = guest.vcpu();
  vcpu.cr4 |= 1 << 12;
  EXPECT_THAT(reason(prove(guest, {vcpu})), HasSubstr("levels"));
}

TEST(ProveLive, RefusesSystemManagementMode) {
  FakeGuest guest;
  X86Vcpu vcpu = guest.vcpu();
  vcpu.smm = true;
  EXPECT_THAT(reason(prove(guest, {vcpu})), HasSubstr("system management mode"));
}

TEST(ProveLive, RefusesFirmware) {
  FakeGuest guest;
  X86Vcpu vcpu;
  EXPECT_EQ(reason(prove(guest, {vcpu})), "vCPU 0 runs with paging off: firmware or a boot loader");
}

TEST(ProveLive, RefusesRunningVcpuWithPagingOffBesideAProvedOne) {
  FakeGuest guest;
  X86Vcpu starting;
  starting.index = 1;
  EXPECT_THAT(reason(prove(guest, {guest.vcpu(), starting})), HasSubstr("vCPU 1 runs with paging off"));
}

TEST(ProveLive, RefusesWhenAllAreHaltedWithPagingOff) {
  FakeGuest guest;
  X86Vcpu vcpu;
  vcpu.halted = true;
  EXPECT_THAT(reason(prove(guest, {vcpu})), HasSubstr("all vCPUs are halted"));
}

TEST(ProveLive, RefusesThirtyTwoBitMode) {
  FakeGuest guest;
  X86Vcpu vcpu = guest.vcpu();
  vcpu.efer = 0;
  EXPECT_THAT(reason(prove(guest, {vcpu})), HasSubstr("not in 64-bit mode"));
}

TEST(ProveLive, RefusesPrivilegedCodeInLowerHalf) {
  FakeGuest guest;
  X86Vcpu vcpu = guest.vcpu();
  vcpu.cpl = 0;
  EXPECT_THAT(reason(prove(guest, {vcpu})), HasSubstr("privileged code at 0x401000"));
}

TEST(ProveLive, RefusesPrivilegeLevelsThatLinuxDoesNotUse) {
  FakeGuest guest;
  X86Vcpu vcpu = guest.vcpu();
  vcpu.cpl = 1;
  EXPECT_THAT(reason(prove(guest, {vcpu})), HasSubstr("privilege level 1"));
}

TEST(ProveLive, RefusesGuestWithoutVcpu) {
  FakeGuest guest;
  EXPECT_THAT(reason(prove(guest, {})), HasSubstr("no vCPU"));
}

TEST(ProveLive, FailureToReadTheGuestIsNoVerdict) {
  FakeGuest guest;
  guest.memory().fail_reads = true;
  const auto result = prove(guest, {guest.vcpu()});
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().kind(), ErrorKind::kVanished);
}

// ---- what VMCOREINFO must say ----

class BadVmcoreInfo : public ::testing::TestWithParam<std::tuple<const char*, const char*, ErrorKind>> {};

INSTANTIATE_TEST_SUITE_P(
    Keys, BadVmcoreInfo,
    ::testing::Values(std::tuple{"PAGESIZE", "16384", ErrorKind::kUnsupported},
                      std::tuple{"PAGESIZE", "", ErrorKind::kUnsupported},
                      std::tuple{"NUMBER(sme_mask)", "140737488355328", ErrorKind::kUnsupported},
                      std::tuple{"NUMBER(phys_base)", "", ErrorKind::kUnsupported},
                      std::tuple{"NUMBER(phys_base)", "-2097152000", ErrorKind::kDamaged},
                      std::tuple{"NUMBER(phys_base)", "9223372036854775807", ErrorKind::kDamaged},
                      std::tuple{"SYMBOL(_stext)", "", ErrorKind::kDamaged},
                      std::tuple{"SYMBOL(_stext)", "401000", ErrorKind::kDamaged},
                      std::tuple{"SYMBOL(swapper_pg_dir)", "", ErrorKind::kDamaged},
                      std::tuple{"SYMBOL(swapper_pg_dir)", "ffffffff81000008", ErrorKind::kDamaged}));

TEST_P(BadVmcoreInfo, IsRefused) {
  const auto& [key, value, kind] = GetParam();
  FakeGuest guest;
  guest.set_key(key, value);
  auto info = VmcoreInfo::parse(guest.text());
  ASSERT_TRUE(info.ok());
  const auto kernel = LinuxKernel::from_vmcoreinfo(*std::move(info), FakeGuest::kDataPage);
  ASSERT_FALSE(kernel.ok());
  EXPECT_EQ(kernel.error().kind(), kind) << kernel.error().message();
}

TEST(FromVmcoreInfo, TakesInitTopPgtForSwapper) {
  FakeGuest guest;
  const std::string value(*VmcoreInfo::parse(guest.text())->string("SYMBOL(swapper_pg_dir)"));
  guest.set_key("SYMBOL(swapper_pg_dir)", "");
  guest.set_key("SYMBOL(init_top_pgt)", value);
  EXPECT_EQ(guest.kernel().page_tables().top, Pfn{FakeGuest::kTopPfn}.address());
}

// ---- finding ----

TEST(FindLinuxKernel, FindsTheNoteFirst) {
  FakeGuest guest;
  const auto kernel = find(guest);
  ASSERT_TRUE(kernel.ok()) << kernel.error().message();
  EXPECT_EQ(kernel->release(), "6.12.0-fake");
  EXPECT_EQ(kernel->witness().address, FakeGuest::kNotePages + 24);
  EXPECT_EQ(kernel->vmcoreinfo().text(), guest.text());
}

TEST(FindLinuxKernel, FindsTheDataPageAlone) {
  FakeGuest guest;
  guest.memory().write_le(FakeGuest::kNotePages, u32{0});
  const auto kernel = find(guest);
  ASSERT_TRUE(kernel.ok()) << kernel.error().message();
  EXPECT_EQ(kernel->witness().address, FakeGuest::kDataPage);
}

TEST(FindLinuxKernel, ReadsNoteThatFillsMoreThanItsFirstPage) {
  FakeGuest guest;
  guest.set_key("PADDING", std::string(kPageSize - guest.text().size() - 9, 'x'));
  ASSERT_EQ(guest.text().size(), kPageSize);
  const auto kernel = find(guest);
  ASSERT_TRUE(kernel.ok()) << kernel.error().message();
  EXPECT_EQ(kernel->vmcoreinfo().text(), guest.text());
}

TEST(FindLinuxKernel, FullDataPageEndsWithThePage) {
  FakeGuest guest;
  guest.set_key("PADDING", std::string(kPageSize, 'x'));
  guest.memory().write_le(FakeGuest::kNotePages, u32{0});
  guest.memory().write_le(FakeGuest::kDataPage + kPageSize, u32{0x41414141});
  const auto kernel = find(guest);
  ASSERT_TRUE(kernel.ok()) << kernel.error().message();
  EXPECT_EQ(kernel->vmcoreinfo().text().size(), kPageSize);
}

// Hazard 1: what a kernel before a warm reset left behind.
TEST(FindLinuxKernel, PassesOverStaleKernel) {
  FakeGuest guest;
  std::string stale = guest.text();
  stale.replace(stale.find("6.12.0-fake"), 11, "5.10.0-dead");
  stale.replace(stale.find("ffffffff81010000"), 16, "ffffffff81020000");
  guest.write_note(GuestPhysical{0x40'0000}, stale);
  const auto kernel = find(guest);
  ASSERT_TRUE(kernel.ok()) << kernel.error().message();
  EXPECT_EQ(kernel->release(), "6.12.0-fake");
}

TEST(FindLinuxKernel, BelievesNeitherOfTwoDifferentLiveKernels) {
  FakeGuest guest;
  std::string forged = guest.text();
  forged.replace(forged.find("SIZE(page)=64"), 13, "SIZE(page)=32");
  guest.write_data_page(GuestPhysical{0x40'0000}, forged);
  EXPECT_THAT(why_not_found(guest), HasSubstr("two different kernels"));
}

TEST(FindLinuxKernel, SaysThatThereIsNoVmcoreInfo) {
  FakeGuest guest;
  guest.memory().write_le(FakeGuest::kNotePages, u32{0});
  guest.memory().write_le(FakeGuest::kDataPage, u32{0});
  EXPECT_THAT(why_not_found(guest), HasSubstr("no VMCOREINFO in 47 MiB"));
}

TEST(FindLinuxKernel, SaysWhyCandidatesAreNotAlive) {
  FakeGuest guest;
  guest.memory().write_le(guest.tables().entry(GuestVirtual{0xffffffff81000000}, 21), u64{0});
  for (u64 i = 0; i < 3; ++i) guest.write_data_page(GuestPhysical{0x40'0000 + i * 0x10'0000}, guest.text());
  const std::string why = why_not_found(guest);
  EXPECT_THAT(why, HasSubstr("do not map its text"));
  EXPECT_THAT(why, HasSubstr("VMCOREINFO at 0x1110018"));
  EXPECT_THAT(why, HasSubstr("and 2 more"));
}

TEST(FindLinuxKernel, SaysThatFirmwareRunsWithoutSearching) {
  FakeGuest guest;
  const X86Vcpu vcpu;
  const auto kernel = find_linux_kernel(guest.memory(), std::vector{vcpu});
  ASSERT_FALSE(kernel.ok());
  EXPECT_EQ(kernel.error().kind(), ErrorKind::kIncompatible);
  EXPECT_THAT(kernel.error().message(), HasSubstr("firmware or a boot loader"));
}

TEST(FindLinuxKernel, RefusesMemoryFullOfCandidates) {
  FakeGuest guest;
  for (u64 i = 0; i <= kMaxVmcoreInfoCandidates; ++i) {
    guest.write_data_page(GuestPhysical{0x40'0000 + i * kPageSize}, "OSRELEASE=x\n");
  }
  const auto kernel = find(guest);
  ASSERT_FALSE(kernel.ok());
  EXPECT_EQ(kernel.error().kind(), ErrorKind::kDamaged);
}

TEST(FindLinuxKernel, PassesOnFailureToReadTheGuest) {
  FakeGuest guest;
  guest.memory().fail_reads = true;
  EXPECT_EQ(find(guest).error().kind(), ErrorKind::kVanished);
}

// ---- the search alone ----

TEST(SearchVmcoreInfo, LooksAtPageStartsOnly) {
  vmsieve::testing::FakeMemory memory({{Pfn{0}, 64}});
  memory.write(GuestPhysical{0x3008}, as_byte_span("OSRELEASE=6.1\n"));
  EXPECT_TRUE(search_vmcoreinfo(memory, 1)->empty());
}

TEST(SearchVmcoreInfo, NoteMustHaveThePossibleSize) {
  FakeGuest guest;
  guest.memory().write_le(FakeGuest::kNotePages + 4, u32{0x10'0000});
  const auto found = search_vmcoreinfo(guest.memory(), 2);
  ASSERT_TRUE(found);
  for (const auto& candidate : *found) EXPECT_FALSE(candidate.note);
}

TEST(SearchVmcoreInfo, NoteCutByTheEndOfRamEndsThere) {
  vmsieve::testing::FakeMemory memory({{Pfn{0}, 4}});
  std::vector<std::byte> page(kPageSize, std::byte{'x'});
  memory.write(GuestPhysical{0x3000}, page);
  memory.write_le(GuestPhysical{0x3000}, u32{11});
  memory.write_le(GuestPhysical{0x3004}, u32{8192});
  memory.write_le(GuestPhysical{0x3008}, u32{0});
  memory.write(GuestPhysical{0x300c}, as_byte_span(std::string_view("VMCOREINFO\0\0", 12)));
  const auto found = search_vmcoreinfo(memory, 1);
  ASSERT_TRUE(found.ok());
  ASSERT_EQ(found->size(), 1u);
  EXPECT_EQ(found->front().text.size(), kPageSize - 24);
}

TEST(SearchVmcoreInfo, FindsWhatLiesInAnyRamRange) {
  vmsieve::testing::FakeMemory memory({{Pfn{0}, 4}, {Pfn{0x10'0000}, 0x9000}});
  memory.write(GuestPhysical{0x1'0000'0000 + 0x8fff * kPageSize}, as_byte_span("OSRELEASE=a\n"));
  memory.write(GuestPhysical{0x2000}, as_byte_span("OSRELEASE=b\n"));
  const auto found = search_vmcoreinfo(memory, 2);
  ASSERT_TRUE(found.ok());
  ASSERT_EQ(found->size(), 2u);
  EXPECT_EQ(found->front().address, GuestPhysical{0x2000});
}

}  // namespace
}  // namespace vmsieve
