// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/elf_dump.h"

#include <elf.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmsieve/base/endian.h"
#include "vmsieve/formats/elf_core.h"

namespace vmsieve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Segment = ElfDumpHead::Segment;

/// An ELF core, made piece by piece.
class Core {
 public:
  explicit Core(u16 machine = EM_X86_64) {
    std::memcpy(elf_.e_ident, ELFMAG, SELFMAG);
    elf_.e_ident[EI_CLASS] = ELFCLASS64;
    elf_.e_ident[EI_DATA] = ELFDATA2LSB;
    elf_.e_type = ET_CORE;
    elf_.e_machine = machine;
    elf_.e_phoff = sizeof elf_;
    elf_.e_phentsize = sizeof(Elf64_Phdr);
  }

  Core& load(u64 address, u64 bytes, u64 file_bytes, u64 offset) {
    Elf64_Phdr header{};
    header.p_type = PT_LOAD;
    header.p_paddr = address;
    header.p_memsz = bytes;
    header.p_filesz = file_bytes;
    header.p_offset = offset;
    headers_.push_back(header);
    return *this;
  }

  Core& note(std::string_view name, std::span<const std::byte> content) {
    Elf64_Nhdr head{};
    head.n_namesz = static_cast<Elf64_Word>(name.size() + 1);
    head.n_descsz = static_cast<Elf64_Word>(content.size());
    const auto* bytes = reinterpret_cast<const std::byte*>(&head);
    notes_.insert(notes_.end(), bytes, bytes + sizeof head);
    for (const char c : name) notes_.push_back(static_cast<std::byte>(c));
    notes_.resize(round_up(notes_.size() + 1, 4));
    notes_.insert(notes_.end(), content.begin(), content.end());
    notes_.resize(round_up(notes_.size(), 4));
    return *this;
  }

  /// QEMU's registers of a vCPU in 64-bit code.
  Core& vcpu(u64 rip, u64 cr3, u32 cs) {
    std::vector<std::byte> state(440);
    store_le(&state[136], rip);
    store_le(&state[152], cs);
    store_le(&state[160], u32{1} << 21);
    store_le(&state[392], u64{1} << 31);
    store_le(&state[416], cr3);
    store_le(&state[424], u64{0x20});
    return note("QEMU", state);
  }

  /// `bytes` long in all.
  std::vector<std::byte> file(u64 bytes) {
    std::vector<Elf64_Phdr> headers = headers_;
    if (!notes_.empty()) {
      Elf64_Phdr header{};
      header.p_type = PT_NOTE;
      header.p_offset = sizeof elf_ + (headers.size() + 1) * sizeof header;
      header.p_filesz = notes_.size();
      headers.push_back(header);
    }
    elf_.e_phnum = static_cast<Elf64_Half>(headers.size());
    std::vector<std::byte> out(sizeof elf_ + headers.size() * sizeof(Elf64_Phdr));
    std::memcpy(out.data(), &elf_, sizeof elf_);
    if (!headers.empty())
      std::memcpy(out.data() + sizeof elf_, headers.data(), headers.size() * sizeof(Elf64_Phdr));
    out.insert(out.end(), notes_.begin(), notes_.end());
    out.resize(bytes);
    return out;
  }

  Elf64_Ehdr& elf() { return elf_; }

 private:
  template <typename T>
  static void store_le(std::byte* at, T value) {
    std::memcpy(at, &value, sizeof value);
  }

  Elf64_Ehdr elf_{};
  std::vector<Elf64_Phdr> headers_;
  std::vector<std::byte> notes_;
};

Result<ElfDumpHead> read_head(const std::vector<std::byte>& file) {
  return ElfDumpHead::read(
      [&](u64 offset, std::span<std::byte> out) -> Result<void> {
        if (!out.empty()) std::memcpy(out.data(), file.data() + offset, out.size());
        return {};
      },
      file.size());
}

std::string why_not(const std::vector<std::byte>& file) {
  const auto head = read_head(file);
  return head.ok() ? "read" : head.error().message();
}

TEST(ElfDumpHead, MemoryIsOrderedAndTakenOnce) {
  // As a kernel's own core: its image first, at its place and once more within all of memory.
  const auto head = read_head(Core()
                                  .load(0x5000, 0x2000, 0x2000, 0x1000)
                                  .load(0x8000, 0x4000, 0x1000, 0x8000)
                                  .load(0x1000, 0x6000, 0x6000, 0x2000)
                                  .load(0x6000, 0x3000, 0x3000, 0x1000)
                                  .file(0x9000));
  ASSERT_TRUE(head.ok()) << head.error().message();
  EXPECT_THAT(head->segments,
              ElementsAre(Segment{0x1000, 0x6000, 0x6000, 0x2000}, Segment{0x7000, 0x2000, 0x2000, 0x2000},
                          Segment{0x9000, 0x3000, 0, 0x9000}));
}

TEST(ElfDumpHead, WhatIsNoWholePageIsLeftOut) {
  const auto head = read_head(Core()
                                  .load(0x1800, 0x2c00, 0x2c00, 0x1000)
                                  .load(0x10000, 0x800, 0x800, 0)
                                  .load(0x20100, 0x2000, 0x80, 0x3000)
                                  .file(0x9000));
  ASSERT_TRUE(head.ok()) << head.error().message();
  EXPECT_THAT(head->segments,
              ElementsAre(Segment{0x2000, 0x2000, 0x2000, 0x1800}, Segment{0x21000, 0x1000, 0, 0x3080}));
}

TEST(ElfDumpHead, RegistersOfQemusNotes) {
  const auto head = read_head(Core()
                                  .load(0, 0x1000, 0x1000, 0)
                                  .note("CORE", std::vector<std::byte>(336))
                                  .vcpu(0xffffffff81000010, 0x2000, 0x10)
                                  .vcpu(0x401000, 0x3000, 0x33)
                                  .note("QEMU", std::vector<std::byte>(8))
                                  .file(0x2000));
  ASSERT_TRUE(head.ok()) << head.error().message();
  const auto* vcpus = std::get_if<std::vector<X86Vcpu>>(&head->vcpus);
  ASSERT_NE(vcpus, nullptr);
  ASSERT_EQ(vcpus->size(), 2U);
  const X86Vcpu& first = vcpus->front();
  EXPECT_EQ(first.rip, 0xffffffff81000010);
  EXPECT_EQ(first.cr3, 0x2000U);
  EXPECT_EQ(first.cr4, 0x20U);
  EXPECT_EQ(first.cpl, 0U);
  EXPECT_TRUE(first.paging() && first.long_mode());
  EXPECT_EQ((*vcpus)[1].cpl, 3U);
  EXPECT_EQ((*vcpus)[1].index, 1U);
}

TEST(ElfDumpHead, NoRegistersInOthers) {
  const auto head = read_head(Core(EM_AARCH64)
                                  .load(0, 0x1000, 0x1000, 0)
                                  .note("VMCOREINFO", as_byte_span("OSRELEASE=6.1.0\n"))
                                  .file(0x2000));
  ASSERT_TRUE(head.ok());
  EXPECT_TRUE(std::holds_alternative<UnknownVcpus>(head->vcpus));
  EXPECT_EQ(head->vmcoreinfo, "OSRELEASE=6.1.0\n");
}

TEST(ElfDumpHead, ReadsWhatExportWrites) {
  const std::vector<FileSegment> segments = {
      {.address = 0, .pages = 5, .file_pages = 2, .offset = 0x1000},
      {.address = 0x9000, .pages = 3, .file_pages = 3, .offset = 0x3000}};
  auto file = elf_head(ElfMachine::kX86, segments, "OSRELEASE=6.1.0\n");
  file.resize(0x6000);
  const auto head = read_head(file);
  ASSERT_TRUE(head.ok()) << head.error().message();
  EXPECT_THAT(head->segments,
              ElementsAre(Segment{0, 0x5000, 0x2000, 0x1000}, Segment{0x9000, 0x3000, 0x3000, 0x3000}));
  EXPECT_EQ(head->vmcoreinfo, "OSRELEASE=6.1.0\n");
}

TEST(ElfDumpHead, SaysWhatIsWrong) {
  EXPECT_THAT(why_not(std::vector<std::byte>(10)), HasSubstr("ends before its header"));
  EXPECT_THAT(why_not(std::vector<std::byte>(4096)), HasSubstr("no ELF64 core"));
  EXPECT_THAT(why_not(Core().file(0x1000)), HasSubstr("no memory"));
  EXPECT_THAT(why_not(Core().load(0, 0x3000, 0x3000, 0x1000).file(0x3fff)), HasSubstr("cut off"));
  EXPECT_THAT(why_not(Core().load(0, 0x1000, 0x1000, ~u64{0}).file(0x3000)), HasSubstr("cut off"));
  EXPECT_THAT(why_not(Core().load(~u64{0} - 0x1000, 0x3000, 0, 0).file(0x3000)), HasSubstr("no machine has"));
  EXPECT_THAT(why_not(Core().load(0x1000, ~u64{0}, 0, 0).file(0x3000)), HasSubstr("no machine has"));
  Core beyond;
  beyond.elf().e_phoff = 0x2000;
  EXPECT_THAT(why_not(beyond.load(0, 0x1000, 0, 0).file(0x2000)), HasSubstr("program headers"));
  auto note = Core().load(0, 0x1000, 0, 0).note("QEMU", std::vector<std::byte>(16)).file(0x1000);
  note[sizeof(Elf64_Ehdr) + 2 * sizeof(Elf64_Phdr) + 7] = std::byte{0xff};  // its length
  EXPECT_THAT(why_not(note), HasSubstr("behind its notes"));
  Core many;
  auto file = many.load(0, 0x1000, 0, 0).file(0x1000);
  Elf64_Ehdr elf = many.elf();
  elf.e_phnum = PN_XNUM;
  elf.e_shoff = 0x200;
  std::memcpy(file.data(), &elf, sizeof elf);
  Elf64_Shdr section{};
  section.sh_info = 0xffffffff;
  std::memcpy(file.data() + 0x200, &section, sizeof section);
  EXPECT_THAT(why_not(file), HasSubstr("are the most"));
  section.sh_info = 1;
  std::memcpy(file.data() + 0x200, &section, sizeof section);
  EXPECT_EQ(why_not(file), "read");
}

TEST(ElfDump, ReadsAcrossSegmentsAndZerosWhereNothingIs) {
  auto bytes = Core().load(0x1000, 0x3000, 0x1000, 0x1000).load(0x4000, 0x1000, 0x1000, 0x2000).file(0x3000);
  std::memset(bytes.data() + 0x1000, 'a', 0x1000);
  std::memset(bytes.data() + 0x2000, 'b', 0x1000);
  char path[] = "/tmp/elf_dump_test.XXXXXX";
  UniqueFd file(::mkstemp(path));
  ASSERT_TRUE(file.valid());
  ::unlink(path);
  ASSERT_EQ(::write(file.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  const auto dump = ElfDump::open(std::move(file), bytes.size(), path);
  ASSERT_TRUE(dump.ok()) << dump.error().message();
  const ElfDump& memory = **dump;
  EXPECT_THAT(memory.ram(), ElementsAre(PfnRange{Pfn{1}, 4}));
  std::vector<std::byte> out(0x3000);
  ASSERT_TRUE(memory.read(GuestPhysical{0x1800}, out).ok());
  EXPECT_EQ(out[0], std::byte{'a'});
  EXPECT_EQ(out[0x7ff], std::byte{'a'});
  EXPECT_EQ(out[0x800], std::byte{0});
  EXPECT_EQ(out[0x27ff], std::byte{0});
  EXPECT_EQ(out[0x2800], std::byte{'b'});
  EXPECT_FALSE(memory.read(GuestPhysical{0x4800}, std::span{out}.first(0x1000)).ok());
  EXPECT_FALSE(memory.read(GuestPhysical{0x800}, std::span{out}.first(0x1000)).ok());
  EXPECT_THAT(memory.resident({Pfn{0}, 100}), ElementsAre(PfnRange{Pfn{1}, 1}, PfnRange{Pfn{4}, 1}));
  EXPECT_THAT(memory.resident({Pfn{2}, 2}), ElementsAre());
}

}  // namespace
}  // namespace vmsieve
