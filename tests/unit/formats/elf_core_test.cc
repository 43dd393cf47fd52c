// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/elf_core.h"

#include <elf.h>
#include <cstring>

#include <gtest/gtest.h>

namespace vmsieve {
namespace {

template <typename T>
T at(const std::vector<std::byte>& bytes, u64 offset) {
  T value;
  EXPECT_LE(offset + sizeof value, bytes.size());
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

TEST(ElfCore, HeadSaysWhereEveryPageIs) {
  const std::vector<FileSegment> segments = {
      {.address = 0x1000, .pages = 5, .file_pages = 2, .offset = 0x1000},
      {.address = 0x9000, .pages = 3, .file_pages = 3, .offset = 0x3000}};
  const std::string info = "OSRELEASE=6.1.0\n";
  ASSERT_EQ(elf_head_bytes(segments.size(), info), kPageSize);
  const auto head = elf_head(ElfMachine::kX86, segments, info);
  ASSERT_EQ(head.size(), kPageSize);
  const auto header = at<Elf64_Ehdr>(head, 0);
  EXPECT_EQ(std::memcmp(header.e_ident, ELFMAG, SELFMAG), 0);
  EXPECT_EQ(header.e_type, ET_CORE);
  EXPECT_EQ(header.e_machine, EM_X86_64);
  ASSERT_EQ(header.e_phnum, 3);
  const auto note = at<Elf64_Phdr>(head, header.e_phoff);
  EXPECT_EQ(note.p_type, static_cast<Elf64_Word>(PT_NOTE));
  const auto second = at<Elf64_Phdr>(head, header.e_phoff + sizeof(Elf64_Phdr));
  EXPECT_EQ(second.p_type, static_cast<Elf64_Word>(PT_LOAD));
  EXPECT_EQ(second.p_paddr, 0x1000U);
  EXPECT_EQ(second.p_filesz, 2 * kPageSize);
  EXPECT_EQ(second.p_memsz, 5 * kPageSize);
  EXPECT_EQ(second.p_offset, 0x1000U);
  const auto last = at<Elf64_Phdr>(head, header.e_phoff + 2 * sizeof(Elf64_Phdr));
  EXPECT_EQ(last.p_paddr, 0x9000U);
  const auto in_note = at<Elf64_Nhdr>(head, note.p_offset);
  EXPECT_EQ(in_note.n_descsz, info.size());
  const u64 name = note.p_offset + sizeof in_note;
  EXPECT_STREQ(reinterpret_cast<const char*>(&head[name]), "VMCOREINFO");
  EXPECT_EQ(std::memcmp(&head[name + 12], info.data(), info.size()), 0);
  EXPECT_EQ(note.p_filesz, sizeof in_note + 12 + info.size());
}

TEST(ElfCore, HasNoNoteWithoutAKernel) {
  const auto head = elf_head(ElfMachine::kArm64, {}, "");
  const auto header = at<Elf64_Ehdr>(head, 0);
  EXPECT_EQ(header.e_machine, EM_AARCH64);
  EXPECT_EQ(at<Elf64_Phdr>(head, header.e_phoff).p_filesz, 0U);
}

TEST(ElfCore, HeadGrowsWithItsSegments) {
  EXPECT_EQ(elf_head_bytes(1000, "x"), 16 * kPageSize - kPageSize * 2);
  EXPECT_EQ(elf_head(ElfMachine::kX86, std::vector<FileSegment>(1000), "x").size(), 14 * kPageSize);
}

}  // namespace
}  // namespace vmsieve
