// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/elf_core.h"

#include <elf.h>
#include <cstring>

#include "vmsieve/base/result.h"

namespace vmsieve {

namespace {

constexpr char kNoteName[] = "VMCOREINFO";

u64 note_bytes(std::string_view vmcoreinfo) {
  if (vmcoreinfo.empty()) return 0;
  return sizeof(Elf64_Nhdr) + round_up(sizeof kNoteName, kElfNoteAlign) +
         round_up(vmcoreinfo.size(), kElfNoteAlign);
}

template <typename T>
void put(std::vector<std::byte>& out, u64 at, const T& value) {
  std::memcpy(out.data() + at, &value, sizeof value);
}

}  // namespace

u64 elf_head_bytes(std::size_t segments, std::string_view vmcoreinfo) {
  return round_up(sizeof(Elf64_Ehdr) + (segments + 1) * sizeof(Elf64_Phdr) + note_bytes(vmcoreinfo),
                  kPageSize);
}

std::vector<std::byte> elf_head(ElfMachine machine, const std::vector<FileSegment>& segments,
                                std::string_view vmcoreinfo) {
  VMSIEVE_CHECK(segments.size() < kMostElfSegments);
  std::vector<std::byte> out(elf_head_bytes(segments.size(), vmcoreinfo));
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  header.e_type = ET_CORE;
  header.e_machine = static_cast<Elf64_Half>(machine);
  header.e_version = EV_CURRENT;
  header.e_phoff = sizeof header;
  header.e_ehsize = sizeof header;
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = static_cast<Elf64_Half>(segments.size() + 1);
  put(out, 0, header);

  u64 at = sizeof header;
  Elf64_Phdr note{};
  note.p_type = PT_NOTE;
  note.p_offset = sizeof header + (segments.size() + 1) * sizeof note;
  note.p_filesz = note_bytes(vmcoreinfo);
  note.p_memsz = note.p_filesz;
  put(out, at, note);
  at += sizeof note;
  for (const FileSegment& segment : segments) {
    Elf64_Phdr load{};
    load.p_type = PT_LOAD;
    load.p_flags = PF_R | PF_W | PF_X;
    load.p_offset = segment.offset;
    load.p_vaddr = segment.virtual_address;
    load.p_paddr = segment.address;
    load.p_filesz = segment.file_pages * kPageSize;
    load.p_memsz = segment.pages * kPageSize;
    put(out, at, load);
    at += sizeof load;
  }
  if (!vmcoreinfo.empty()) {
    Elf64_Nhdr head{};
    head.n_namesz = sizeof kNoteName;
    head.n_descsz = static_cast<Elf64_Word>(vmcoreinfo.size());
    put(out, at, head);
    at += sizeof head;
    std::memcpy(out.data() + at, kNoteName, sizeof kNoteName);
    at += round_up(sizeof kNoteName, kElfNoteAlign);
    std::memcpy(out.data() + at, vmcoreinfo.data(), vmcoreinfo.size());
  }
  return out;
}

}  // namespace vmsieve
