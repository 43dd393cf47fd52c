// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/arm64_kernel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_guest.h"

namespace vmsieve {
namespace {

using ::testing::HasSubstr;
using vmsieve::testing::arm64_options;
using vmsieve::testing::FakeGuest;
using vmsieve::testing::FakeTables;

constexpr u32 kEl1 = 0x3c5;  // EL1h, interrupts masked
constexpr u32 kEl2 = 0x3c9;
constexpr u32 kUser32 = 0x10;

Result<void> prove(FakeGuest& guest, std::vector<Arm64Vcpu> vcpus) {
  return guest.kernel().prove_live(guest.memory(), vcpus);
}

std::string reason(const Result<void>& result) {
  if (result.ok()) return "proved";
  EXPECT_EQ(result.error().kind(), ErrorKind::kIncompatible) << result.error().message();
  return result.error().message();
}

Arm64Vcpu in_kernel(const FakeGuest& guest) {
  Arm64Vcpu vcpu = guest.arm64_vcpu();
  vcpu.pstate = kEl1;
  vcpu.pc = guest.image(GuestPhysical{FakeGuest::kPhysBase + 0x100'1000}).value;
  return vcpu;
}

class ProveArm64 : public ::testing::TestWithParam<Arm64Translation> {};

INSTANTIATE_TEST_SUITE_P(Translations, ProveArm64,
                         ::testing::Values(Arm64Translation{12, 48, false}, Arm64Translation{12, 52, true},
                                           Arm64Translation{14, 48, false}, Arm64Translation{14, 52, true},
                                           Arm64Translation{16, 48, false}, Arm64Translation{16, 52, false}));

TEST_P(ProveArm64, AcceptsKernelAndUserMode) {
  FakeGuest guest(arm64_options(GetParam()));
  Arm64Vcpu user32 = guest.arm64_vcpu(2);
  user32.pstate = kUser32;
  EXPECT_EQ(reason(prove(guest, {guest.arm64_vcpu(), in_kernel(guest), user32})), "proved");
}

// User mode under page-table isolation: tables that map the vectors alone.
TEST_P(ProveArm64, AcceptsTrampolineTables) {
  FakeGuest guest(arm64_options(GetParam()));
  FakeTables trampoline(guest.memory(), GetParam(), Pfn{FakeGuest::kProcessTop}, Pfn{0x1800});
  trampoline.map(FakeGuest::kVectors, FakeGuest::kVectorsPage, guest.page_shift());
  Arm64Vcpu vcpu = guest.arm64_vcpu();
  vcpu.system->ttbr1_el1 = FakeGuest::kProcessTop.value | u64{0x1b} << 48;
  vcpu.system->vbar_el1 = FakeGuest::kVectors.value + 0x800;
  EXPECT_EQ(reason(prove(guest, {vcpu})), "proved");
  // The same tables with another page behind the vectors.
  trampoline.map(FakeGuest::kVectors, GuestPhysical{0x40'0000}, guest.page_shift());
  EXPECT_THAT(reason(prove(guest, {vcpu})), HasSubstr("exception vectors"));
}

TEST_P(ProveArm64, FindsTheKernel) {
  FakeGuest guest(arm64_options(GetParam()));
  const auto kernel = find_linux_kernel(guest.memory(), std::vector{guest.arm64_vcpu()});
  ASSERT_TRUE(kernel.ok()) << kernel.error().message();
  EXPECT_EQ(kernel->page_shift(), GetParam().page_shift);
}

// Kernels for 52 bits with 64 KiB pages run with 48 where the processor has no more: TTBR1_EL1 then
// points to the upper end of the same table.
TEST(ProveArm64, AcceptsTopTableEnteredAtItsUpperEnd) {
  FakeGuest guest(arm64_options({16, 52, false}));
  guest.set_key("NUMBER(TCR_EL1_T1SZ)", "0x10");
  Arm64Vcpu vcpu = in_kernel(guest);
  vcpu.system->tcr_el1 = (vcpu.system->tcr_el1 & ~(u64{0x3f} << 16)) | u64{16} << 16;
  vcpu.system->ttbr1_el1 += (1024 - 64) * 8;
  EXPECT_EQ(reason(prove(guest, {vcpu})), "proved");
}

TEST(ProveArm64, TakesHighBitsOfTheTableFromTheLowOnes) {
  FakeGuest guest(arm64_options({14, 52, true}));
  Arm64Vcpu vcpu = guest.arm64_vcpu();
  vcpu.system->tcr_el1 = (vcpu.system->tcr_el1 & ~(u64{7} << 32)) | u64{6} << 32;
  EXPECT_EQ(reason(prove(guest, {vcpu})), "proved");
  vcpu.system->ttbr1_el1 |= 0x4;  // bit 48 of the address
  EXPECT_THAT(reason(prove(guest, {vcpu})), HasSubstr("does not run under the page tables"));
}

TEST(ProveArm64, PassesOverPoweredOffVcpus) {
  FakeGuest guest(arm64_options());
  Arm64Vcpu off;
  off.index = 1;
  off.pstate = kEl1;
  off.system = Arm64System{};
  off.system->powered_off = true;
  EXPECT_EQ(reason(prove(guest, {guest.arm64_vcpu(), off})), "proved");
  EXPECT_THAT(reason(prove(guest, {off})), HasSubstr("powered off"));
}

TEST(ProveArm64, RefusesWithoutSystemRegisters) {
  FakeGuest guest(arm64_options());
  Arm64Vcpu vcpu = guest.arm64_vcpu();
  vcpu.system.reset();
  EXPECT_THAT(reason(prove(guest, {vcpu})), HasSubstr("not known"));
  EXPECT_TRUE(guest.kernel().seems_live(guest.memory(), std::vector{vcpu}).ok());
}

struct Refusal {
  const char* name;
  void (*change)(FakeGuest& guest, Arm64Vcpu& vcpu);
  const char* reason;
};

class RefusesArm64 : public ::testing::TestWithParam<Refusal> {};

INSTANTIATE_TEST_SUITE_P(
    Vcpus, RefusesArm64,
    ::testing::Values(
        Refusal{"Hypervisor", [](FakeGuest&, Arm64Vcpu& v) { v.pstate = kEl2; }, "exception level 2"},
        Refusal{"PrivilegedAarch32", [](FakeGuest&, Arm64Vcpu& v) { v.pstate = 0x13; }, "AArch32"},
        Refusal{"TranslationOff", [](FakeGuest&, Arm64Vcpu& v) { v.system->sctlr_el1 = 0; },
                "address translation off"},
        Refusal{"BigEndian", [](FakeGuest&, Arm64Vcpu& v) { v.system->sctlr_el1 |= 1 << 25; }, "big-endian"},
        Refusal{"NestedGuest", [](FakeGuest&, Arm64Vcpu& v) { v.system->hcr_el2 = 1; }, "nested guest"},
        Refusal{"HostAtEl2", [](FakeGuest&, Arm64Vcpu& v) { v.system->hcr_el2 = u64{1} << 27; },
                "exception level 2"},
        Refusal{"LowerHalf", [](FakeGuest&, Arm64Vcpu& v) { v.pc = 0x4000'0000; },
                "outside the kernel's half"},
        Refusal{"OtherTables",
                [](FakeGuest&, Arm64Vcpu& v) { v.system->ttbr1_el1 = FakeGuest::kProcessTop.value; },
                "does not run under the page tables"},
        Refusal{"TablesOutsideRam", [](FakeGuest&, Arm64Vcpu& v) { v.system->ttbr1_el1 = 0x7'0000'0000; },
                "does not run under the page tables"},
        Refusal{"OtherGranule",
                [](FakeGuest&, Arm64Vcpu& v) { v.system->tcr_el1 ^= u64{3} << 30 ^ u64 { 1 } << 31; },
                "does not translate addresses"},
        Refusal{"ReservedGranule", [](FakeGuest&, Arm64Vcpu& v) { v.system->tcr_el1 &= ~(u64{3} << 30); },
                "does not translate addresses"},
        Refusal{"WalksOff", [](FakeGuest&, Arm64Vcpu& v) { v.system->tcr_el1 |= 1 << 23; },
                "does not translate addresses"},
        Refusal{"CodeThatIsNotMapped",
                [](FakeGuest& g, Arm64Vcpu& v) { v.pc = g.image(GuestPhysical{0x400'0000}).value; },
                "program counter"}),
    [](const auto& parameter) { return parameter.param.name; });

TEST_P(RefusesArm64, WithTheReason) {
  FakeGuest guest(arm64_options());
  Arm64Vcpu vcpu = in_kernel(guest);
  vcpu.index = 1;
  GetParam().change(guest, vcpu);
  const std::string why = reason(prove(guest, {guest.arm64_vcpu(), vcpu}));
  EXPECT_THAT(why, HasSubstr(GetParam().reason));
  EXPECT_THAT(why, HasSubstr("vCPU 1"));
}

TEST(ProveArm64, RefusesGuestWithoutVcpu) {
  FakeGuest guest(arm64_options());
  EXPECT_THAT(reason(prove(guest, {})), HasSubstr("no vCPU"));
}

TEST(ProveArm64, FailureToReadTheGuestIsNoVerdict) {
  FakeGuest guest(arm64_options());
  guest.memory().fail_reads = true;
  EXPECT_EQ(prove(guest, {guest.arm64_vcpu()}).error().kind(), ErrorKind::kVanished);
}

// ---- what tells a running kernel from a stale one ----

TEST(SeemsLiveArm64, ComparesWhereKernelCodeIs) {
  FakeGuest guest(arm64_options());
  const LinuxKernel kernel = guest.kernel();
  Arm64Vcpu vcpu = in_kernel(guest);
  vcpu.system.reset();
  vcpu.pc_physical = GuestPhysical{FakeGuest::kPhysBase + 0x100'1000};
  EXPECT_TRUE(kernel.seems_live(guest.memory(), std::vector{vcpu}).ok());
  vcpu.pc_physical = GuestPhysical{0x20'0000};
  EXPECT_THAT(reason(kernel.seems_live(guest.memory(), std::vector{vcpu})), HasSubstr("program counter"));
}

// Nothing that QEMU tells of a running guest shows that a vCPU is off.
TEST(SeemsLiveArm64, OneVcpuInOrderIsEnough) {
  FakeGuest guest(arm64_options());
  const LinuxKernel kernel = guest.kernel();
  Arm64Vcpu user = guest.arm64_vcpu();
  user.system.reset();
  Arm64Vcpu never_started;
  never_started.index = 1;
  never_started.pstate = kEl1;
  EXPECT_TRUE(kernel.seems_live(guest.memory(), std::vector{user, never_started}).ok());
  EXPECT_THAT(reason(kernel.seems_live(guest.memory(), std::vector{never_started})),
              HasSubstr("outside the kernel's half"));
}

TEST(SeemsLiveArm64, OtherProcessorsAreNotUnderstood) {
  FakeGuest guest(arm64_options());
  const auto kernel = find_linux_kernel(guest.memory(), UnknownVcpus{"riscv64", 2});
  ASSERT_FALSE(kernel.ok());
  EXPECT_THAT(kernel.error().message(), HasSubstr("riscv64"));
  EXPECT_EQ(vcpu_count(UnknownVcpus{"riscv64", 2}), 2u);
  EXPECT_EQ(vcpu_count(std::vector{guest.arm64_vcpu()}), 1u);
}

// ---- what VMCOREINFO must say ----

class BadArm64Info : public ::testing::TestWithParam<std::tuple<const char*, const char*, ErrorKind>> {};

INSTANTIATE_TEST_SUITE_P(
    Keys, BadArm64Info,
    ::testing::Values(std::tuple{"PAGESIZE", "8192", ErrorKind::kUnsupported},
                      std::tuple{"PAGESIZE", "", ErrorKind::kUnsupported},
                      std::tuple{"NUMBER(VA_BITS)", "", ErrorKind::kUnsupported},
                      std::tuple{"NUMBER(TCR_EL1_T1SZ)", "0xffffffffffffffff", ErrorKind::kUnsupported},
                      std::tuple{"NUMBER(TCR_EL1_T1SZ)", "0xd", ErrorKind::kUnsupported},
                      std::tuple{"NUMBER(kimage_voffset)", "", ErrorKind::kUnsupported},
                      std::tuple{"NUMBER(kimage_voffset)", "0x0", ErrorKind::kDamaged},
                      std::tuple{"SYMBOL(_stext)", "", ErrorKind::kDamaged},
                      std::tuple{"SYMBOL(_stext)", "401000", ErrorKind::kDamaged},
                      std::tuple{"SYMBOL(swapper_pg_dir)", "", ErrorKind::kDamaged},
                      std::tuple{"SYMBOL(swapper_pg_dir)", "ffff800011000008", ErrorKind::kDamaged}));

TEST_P(BadArm64Info, IsRefused) {
  const auto& [key, value, kind] = GetParam();
  FakeGuest guest(arm64_options());
  guest.set_key(key, value);
  auto info = VmcoreInfo::parse(guest.text());
  ASSERT_TRUE(info.ok());
  const auto kernel = LinuxKernel::from_vmcoreinfo(*std::move(info), FakeGuest::kDataPage);
  ASSERT_FALSE(kernel.ok());
  EXPECT_EQ(kernel.error().kind(), kind) << kernel.error().message();
}

TEST(FromArm64Info, TakesConfiguredAddressBitsWhereTheKernelSaysNoOther) {
  FakeGuest guest(arm64_options());
  guest.set_key("NUMBER(TCR_EL1_T1SZ)", "");
  EXPECT_EQ(reason(prove(guest, {guest.arm64_vcpu()})), "proved");
}

}  // namespace
}  // namespace vmsieve
