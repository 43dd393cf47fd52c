// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/monitor_text.h"

#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmsieve {
namespace {

using testing::HasSubstr;

constexpr char kOldRamblock[] =
    "              Block Name    PSize              Offset               Used              Total\r\n"
    "                  pc.ram    4 KiB  0x0000000000000000 0x0000000100000000 0x0000000100000000\r\n"
    "    /rom@etc/acpi/tables    4 KiB  0x0000000101100000 0x0000000000020000 0x0000000000200000\r\n"
    "                            2 MiB  0x0000000201100000 0x0000000000200000 0x0000000000200000\r\n";

constexpr char kNewRamblock[] =
    "              Block Name    PSize              Offset               Used              Total             "
    "   HVA  RO\n"
    "               a b c.ram    4 KiB  0x0000000000000000 0x0000000100000000 0x0000000100000000 "
    "0x00007ff74fe00000  rw\n";

TEST(InfoRamblock, OldFormHasNoAddresses) {
  const auto blocks = parse_info_ramblock(kOldRamblock);
  ASSERT_TRUE(blocks) << blocks.error().message();
  ASSERT_EQ(blocks->size(), 3u);
  EXPECT_EQ((*blocks)[0].name, "pc.ram");
  EXPECT_EQ((*blocks)[0].used_bytes, 4 * kGiB);
  EXPECT_EQ((*blocks)[0].host, std::nullopt);
  EXPECT_EQ((*blocks)[1].used_bytes, 0x20000u);
  EXPECT_EQ((*blocks)[1].total_bytes, 0x200000u);
  EXPECT_EQ((*blocks)[2].name, "");
  EXPECT_EQ((*blocks)[2].page_bytes, 2 * kMiB);
}

TEST(InfoRamblock, NewFormHasAddresses) {
  const auto blocks = parse_info_ramblock(kNewRamblock);
  ASSERT_TRUE(blocks) << blocks.error().message();
  EXPECT_EQ(blocks->front().name, "a b c.ram");
  EXPECT_EQ(blocks->front().host, HostVirtual{0x7ff74fe00000});
}

TEST(InfoRamblock, OtherTextIsDamaged) {
  const std::string header = "Block Name PSize Offset Used Total\n";
  for (const std::string& text :
       {std::string{}, std::string{"hello"}, header, header + "x 4 KiB 0x0 0x10",
        header + "x 4 KiB 0x0 0x20 0x10", header + "x 3 KiB 0x0 0x10 0x10", header + "x 4 XiB 0x0 0x10 0x10",
        header + "x 4 KiB 0x0 0x10 0x10 hva", header + "x 99999999999999999999 KiB 0x0 0x10 0x10",
        header + "x 4 KiB 0x0 0xffffffffffffffff 0xffffffffffffffff"}) {
    const auto blocks = parse_info_ramblock(text);
    ASSERT_FALSE(blocks) << text;
    EXPECT_EQ(blocks.error().kind(), ErrorKind::kDamaged);
  }
}

constexpr char kMtree[] =
    "FlatView #0\n"
    " AS \"cpu-smm-0\", root: memory\n"
    " Root memory region: memory\n"
    "  0000000000000000-00000000ffffffff (prio 0, ram): wrong\n"
    "\n"
    "FlatView #1\n"
    " AS \"memory\", root: system\n"
    " AS \"cpu-memory-0\", root: system\n"
    " Root memory region: system\n"
    "  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM\n"
    "  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem\n"
    "  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom\n"
    "  0000000000100000-00000000bfffffff (prio 0, ram): pc.ram @0000000000100000 KVM\n"
    "  0000000240000000-ffffffffffffffff (prio 0, nv-ram): nv\n"
    "\n"
    "FlatView #2\n"
    " AS \"I/O\", root: io\n"
    "  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan\n";

TEST(InfoMtree, TakesTheSystemMemorysView) {
  const auto ranges = parse_info_mtree(kMtree);
  ASSERT_TRUE(ranges) << ranges.error().message();
  ASSERT_EQ(ranges->size(), 5u);
  EXPECT_EQ((*ranges)[0].last, GuestPhysical{0x9ffff});
  EXPECT_EQ((*ranges)[0].kind, "ram");
  EXPECT_EQ((*ranges)[2].kind, "rom");
  EXPECT_EQ((*ranges)[3].first, GuestPhysical{0x100000});
  EXPECT_EQ((*ranges)[4].kind, "nv-ram");
}

TEST(InfoMtree, OtherTextIsDamaged) {
  const std::string head = "FlatView #0\n AS \"memory\", root: system\n";
  for (const std::string& text :
       {std::string{}, std::string{"FlatView #0\n"}, head + "  zz-ff (prio 0, ram): x\n",
        head + "  nonsense\n", head + "  10-0f (prio 0, ram): x\n",
        head + "  00-0f (prio 0, ram): x\n  0f-1f (prio 0, ram): y\n", head + "  00-0f (prio 0 ram): x\n",
        head + "  00-0f (prio 0, ram) x\n"}) {
    EXPECT_FALSE(parse_info_mtree(text)) << text;
  }
}

TEST(FlatRangeLabel, NameOffsetAndAccelerator) {
  const auto offset = [](const char* label, const char* name) {
    return offset_in_region({{}, {}, "ram", label}, name);
  };
  EXPECT_EQ(offset("pc.ram", "pc.ram"), 0u);
  EXPECT_EQ(offset("pc.ram KVM", "pc.ram"), 0u);
  EXPECT_EQ(offset("pc.ram @0000000000100000", "pc.ram"), 0x100000u);
  EXPECT_EQ(offset("pc.ram @0000000000100000 KVM", "pc.ram"), 0x100000u);
  EXPECT_EQ(offset("pc.ram2", "pc.ram"), std::nullopt);
  EXPECT_EQ(offset("pc.ram more words", "pc.ram"), std::nullopt);
  EXPECT_EQ(offset("pc.ram @xyz", "pc.ram"), std::nullopt);
  EXPECT_EQ(offset("a b", "a b"), 0u);
  EXPECT_EQ(offset("x", ""), std::nullopt);
}

TEST(Gpa2hva, AnswersAndRefusals) {
  const auto answer = parse_gpa2hva("Host virtual address for 0x0 (pc.ram) is 0x7fd0bbe00000\r\n");
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->host, HostVirtual{0x7fd0bbe00000});
  EXPECT_EQ(answer->region, "pc.ram");
  EXPECT_EQ(parse_gpa2hva("Error: No memory is mapped at address 0x1\n").error().kind(),
            ErrorKind::kNotFound);
  EXPECT_EQ(parse_gpa2hva("Memory at address 0xa0000is not RAM").error().kind(), ErrorKind::kNotFound);
  for (const char* text : {"", "x", "Host virtual address for 0x0 (a) is (nil)",
                           "Host virtual address for 0x0) is 0x1", "Host virtual address for 0x0 () is "}) {
    EXPECT_EQ(parse_gpa2hva(text).error().kind(), ErrorKind::kDamaged) << text;
  }
}

constexpr char kRegisters[] =
    "\r\nCPU#0\r\n"
    "RAX=0000000000000000 RBX=ffffffff82a14980 RCX=0000000000000000 RDX=4000000000000000\r\n"
    "RIP=ffffffff81c00adf RFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=1\r\n"
    "ES =0000 0000000000000000 ffffffff 00000000\r\n"
    "CS =0010 0000000000001000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r\n"
    "CR0=80050033 CR2=00007f7dd5b1a160 CR3=0000000002a10000 CR4=000006f0\r\n"
    "EFER=0000000000000d01\r\n"
    "\r\nCPU#1\r\n"
    "EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=1 HLT=0\n"
    "CS =f000 ffff0000 0000ffff 00009b00\n"
    "CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000\n"
    "EFER=0000000000000000\n";

TEST(InfoRegisters, LongModeAndRealMode) {
  const auto vcpus = parse_info_registers(kRegisters);
  ASSERT_TRUE(vcpus) << vcpus.error().message();
  ASSERT_EQ(vcpus->size(), 2u);
  const X86Vcpu& first = (*vcpus)[0];
  EXPECT_EQ(first.rip, 0xffffffff81c00adfu);
  EXPECT_EQ(first.cr0, 0x80050033u);
  EXPECT_EQ(first.cr3, 0x2a10000u);
  EXPECT_EQ(first.cr4, 0x6f0u);
  EXPECT_EQ(first.efer, 0xd01u);
  EXPECT_EQ(first.cs_base, 0x1000u);
  EXPECT_EQ(first.cpl, 3u);
  EXPECT_TRUE(first.halted);
  EXPECT_FALSE(first.smm);
  EXPECT_TRUE(first.paging() && first.long_mode());
  const X86Vcpu& second = (*vcpus)[1];
  EXPECT_EQ(second.index, 1u);
  EXPECT_EQ(second.cs_base, 0xffff0000u);
  EXPECT_TRUE(second.smm);
  EXPECT_FALSE(second.halted);
}

TEST(InfoRegisters, VcpuThatLacksARegisterIsAnError) {
  const std::string text = kRegisters;
  for (const char* part :
       {"RIP=ffffffff81c00adf", "CPL=3", "SMM=0", "HLT=1", "CR0=80050033", "CR3=0000000002a10000",
        "CR4=000006f0", "EFER=0000000000000d01", "CS =0010 0000000000001000"}) {
    std::string cut = text;
    cut.replace(cut.find(part), std::strlen(part), "");
    const auto vcpus = parse_info_registers(cut);
    ASSERT_FALSE(vcpus) << part;
    EXPECT_THAT(vcpus.error().message(), HasSubstr("vCPU 0"));
  }
}

TEST(InfoRegisters, OtherTextIsDamaged) {
  for (const char* text : {"", "hello", "CPU#x\n", "CPU#99999999999\n", "CPU#0\n"}) {
    EXPECT_FALSE(parse_info_registers(text)) << text;
  }
  std::string text = kRegisters;
  text.replace(text.find("CPL=3"), 5, "CPL=4");
  EXPECT_FALSE(parse_info_registers(text));
}

}  // namespace
}  // namespace vmsieve
