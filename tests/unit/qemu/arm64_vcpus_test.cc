// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/arm64_vcpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

using ::testing::HasSubstr;

// QEMU 7.2, cut to what matters; the second vCPU runs a 32-bit program.
constexpr const char* kRegisters =
    "\r\nCPU#0\r\n"
    " PC=ffffafdb6dfa8f5c X00=0000000000000005 X01=ffff11213fdac550\r\n"
    "X29=ffffafdb6ec03d40 X30=ffffafdb6dfa8f74  SP=ffffafdb6ec03d40\r\n"
    "PSTATE=400000c5 -Z-- EL1h     FPCR=00000000 FPSR=00000000\r\n"
    "\r\nCPU#1\r\n"
    "R00=00000000 R01=00000001 R02=00000002 R03=00000003\r\n"
    "R12=0000000c R13=7ffe0000 R14=00010000 R15=00010b3c\r\n"
    "PSR=60000010 -ZC- A usr32\r\n";

// One section as QEMU writes it, big-endian.
struct Section {
  u32 instance = 0;
  u32 version = 22;
  u64 pc = 0xffff'afdb'6dfa'8f5c;
  u32 pstate = 0x4000'00c5;
  u32 r15 = 0;
  u8 off = 0;
  u8 next = 0x7e;
  std::vector<std::pair<u64, u64>> registers = {
      {0x6020'0000'0011'0001, 1},  // a 32-bit one
      {0x6030'0000'0013'c080, 0x3'4f4d'91d},
      {0x6030'0000'0013'c100, 0x4822'c000},
      {0x6030'0000'0013'c101, 0x20'0000'4157'b000},
      {0x6030'0000'0013'c102, 0x5'0007'4b55'0351},
      {0x6030'0000'0013'c600, 0xffff'afdb'6d41'0800},
  };

  void append(std::vector<std::byte>& out) const {
    append_be(out, u8{4});
    append_be(out, u32{7});
    append_be(out, u8{3});
    append_bytes(out, as_byte_span("cpu"));
    append_be(out, instance);
    append_be(out, version);
    for (u32 i = 0; i < 16; ++i) append_be(out, i == 15 ? r15 : 0);
    for (u64 i = 0; i < 32; ++i) append_be(out, i);
    append_be(out, pc);
    append_be(out, pstate);
    out.resize(out.size() + 4 + 64 + 32 + 32 + 20 + 20 + 32 + 32);
    append_be(out, static_cast<u32>(registers.size()));
    for (const auto& [index, value] : registers) append_be(out, index);
    for (const auto& [index, value] : registers) append_be(out, value);
    out.resize(out.size() + 24 + 8 + 4 + 4 + 8 + 16);
    append_be(out, off);
    append_be(out, next);
    append_be(out, u32{7});
  }
};

std::vector<Arm64Vcpu> vcpus() { return *parse_arm64_registers(kRegisters); }

std::vector<Arm64Vcpu> with_state(const std::vector<Section>& sections) {
  std::vector<std::byte> state;
  append_bytes(state, as_byte_span("QEVM\0\0\0\3"));
  for (const Section& section : sections) section.append(state);
  auto result = vcpus();
  add_arm64_system_registers(state, result);
  return result;
}

TEST(Arm64Registers, OfEveryVcpuAreRead) {
  const auto read = parse_arm64_registers(kRegisters);
  ASSERT_TRUE(read) << read.error().message();
  ASSERT_EQ(read->size(), 2u);
  EXPECT_EQ((*read)[0].pc, 0xffffafdb6dfa8f5cu);
  EXPECT_EQ((*read)[0].exception_level(), 1u);
  EXPECT_FALSE((*read)[0].aarch32());
  EXPECT_EQ((*read)[1].index, 1u);
  EXPECT_EQ((*read)[1].pc, 0x10b3cu);
  EXPECT_EQ((*read)[1].exception_level(), 0u);
  EXPECT_TRUE((*read)[1].aarch32());
  EXPECT_FALSE((*read)[0].system);
}

TEST(Arm64Registers, VcpuThatLacksOneIsAnError) {
  for (const char* part : {"PC=ffffafdb6dfa8f5c", "PSTATE=400000c5", "R15=00010b3c", "PSR=60000010"}) {
    std::string text = kRegisters;
    text.erase(text.find(part), std::string_view(part).size());
    const auto read = parse_arm64_registers(text);
    ASSERT_FALSE(read) << part;
    EXPECT_THAT(read.error().message(), HasSubstr("lacks program counter or processor state"));
  }
}

TEST(Arm64Registers, OtherTextIsDamaged) {
  for (const char* text : {"", "hello", "CPU#x\n", "CPU#99999999999\n", "CPU#0\n"}) {
    EXPECT_FALSE(parse_arm64_registers(text)) << text;
  }
}

TEST(Gva2Gpa, AnswersOrNot) {
  EXPECT_EQ(parse_gva2gpa("gpa: 0x41588d60\r\n"), GuestPhysical{0x4158'8d60});
  EXPECT_EQ(parse_gva2gpa("Unmapped\r\n"), std::nullopt);
  EXPECT_EQ(parse_gva2gpa("gpa: 0xzz"), std::nullopt);
  EXPECT_EQ(parse_gva2gpa(""), std::nullopt);
}

TEST(Arm64DeviceState, GivesSystemRegisters) {
  const auto read =
      with_state({{}, {.instance = 1, .pc = 0, .pstate = 0x6000'0010, .r15 = 0x10b3c, .off = 1}});
  ASSERT_TRUE(read[0].system && read[1].system);
  EXPECT_EQ(read[0].system->ttbr1_el1, 0x20'0000'4157'b000u);
  EXPECT_EQ(read[0].system->vbar_el1, 0xffff'afdb'6d41'0800u);
  EXPECT_EQ(read[0].system->hcr_el2, 0u);
  EXPECT_FALSE(read[0].system->powered_off);
  EXPECT_TRUE(read[1].system->powered_off);
}

TEST(Arm64DeviceState, GivesHypervisorConfigurationWhereThereIsOne) {
  Section section;
  section.registers.emplace_back(0x6030'0000'0013'e088, 0x8000'0001);
  EXPECT_EQ(with_state({section})[0].system->hcr_el2, 0x8000'0001u);
}

TEST(Arm64DeviceState, IsNotBelievedInDoubt) {
  const std::vector<Section> doubtful[] = {
      {},
      {{}, {}},           // twice
      {{.instance = 2}},  // another vCPU's
      {{.version = 23}},  // another format
      {{.pc = 0xffff'afdb'6dfa'8f60}},
      {{.pstate = 0x4000'00c4}},
      {{.off = 2}},
      {{.next = 0x55}},
  };
  for (const auto& sections : doubtful) EXPECT_FALSE(with_state(sections)[0].system);
}

TEST(Arm64DeviceState, NeedsEveryRegisterInOrder) {
  for (std::size_t missing : {1U, 3U, 4U, 5U}) {
    Section section;
    section.registers.erase(section.registers.begin() + static_cast<std::ptrdiff_t>(missing));
    EXPECT_FALSE(with_state({section})[0].system) << missing;
  }
  Section section;
  std::swap(section.registers[0], section.registers[2]);
  EXPECT_FALSE(with_state({section})[0].system);
  section.registers.clear();
  EXPECT_FALSE(with_state({section})[0].system);
}

TEST(Arm64DeviceState, CutOffAnywhereGivesNothing) {
  std::vector<std::byte> whole;
  Section{}.append(whole);
  for (std::size_t bytes = 0; bytes + 4 < whole.size(); ++bytes) {
    auto read = vcpus();
    add_arm64_system_registers(std::span{whole}.first(bytes), read);
    ASSERT_FALSE(read[0].system) << bytes;
  }
}

}  // namespace
}  // namespace vmsieve
