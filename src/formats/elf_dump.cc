// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/elf_dump.h"

#include <elf.h>

#include <algorithm>
#include <cstring>

#include "vmsieve/base/endian.h"
#include "vmsieve/formats/elf_core.h"

namespace vmsieve {

namespace {

// struct QEMUCPUState, QEMU target/i386/arch_dump.c, version 1: version and size, 18 registers of 8 bytes, 10
// segments of 24, cr0 to cr4. Newer ones are longer.
constexpr u64 kStateBytes = 432;
constexpr u64 kRip = 136;
constexpr u64 kCs = 152;  // selector, limit, flags: 4 bytes each; 4 of padding; base
constexpr u64 kCsFlags = kCs + 8;
constexpr u64 kCsBase = kCs + 16;
constexpr u64 kCr0 = 392;
constexpr u32 kLongCode = u32{1} << 21;  // DESC_L_MASK, target/i386/cpu.h
constexpr u64 kLongModeActive = u64{1} << 10;
constexpr u64 kPrivilegeMask = 3;

constexpr std::string_view kQemuNote{"QEMU\0", 5};
constexpr std::string_view kVmcoreInfoNote{"VMCOREINFO\0", 11};

template <typename T>
T load_struct(std::span<const std::byte> bytes) {
  T value;
  VMSIEVE_CHECK(bytes.size() >= sizeof value);
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

class HeadReader {
 public:
  HeadReader(const ElfDumpHead::ReadFunction& file, u64 file_bytes) : file_(file), file_bytes_(file_bytes) {}

  Result<ElfDumpHead> read();

 private:
  Result<std::vector<std::byte>> bytes_at(u64 offset, u64 count, std::string_view what) const;
  Result<u64> count_headers(const Elf64_Ehdr& elf) const;
  Result<void> add_segment(const Elf64_Phdr& header);
  Result<void> add_notes(const Elf64_Phdr& header);
  void add_note(std::string_view name, std::span<const std::byte> content);
  void settle_segments();

  const ElfDumpHead::ReadFunction& file_;
  const u64 file_bytes_;
  u64 note_bytes_ = 0;
  ElfDumpHead head_;
  std::vector<X86Vcpu> x86_;
};

Result<std::vector<std::byte>> HeadReader::bytes_at(u64 offset, u64 count, std::string_view what) const {
  if (offset > file_bytes_ || count > file_bytes_ - offset) {
    return make_error(ErrorKind::kDamaged, "the ELF core ends before its {} at {:#x}, {:#x} bytes", what,
                      offset, count);
  }
  std::vector<std::byte> bytes(count);
  VMSIEVE_TRY(file_(offset, bytes));
  return bytes;
}

// PN_XNUM: the number stands in the first section header (elf.h).
Result<u64> HeadReader::count_headers(const Elf64_Ehdr& elf) const {
  if (elf.e_phnum != PN_XNUM) return u64{elf.e_phnum};
  VMSIEVE_ASSIGN(const auto bytes, bytes_at(elf.e_shoff, sizeof(Elf64_Shdr), "section header"));
  return u64{load_struct<Elf64_Shdr>(bytes).sh_info};
}

Result<void> HeadReader::add_segment(const Elf64_Phdr& header) {
  const u64 address = round_up(header.p_paddr, kPageSize);
  if (header.p_paddr >= ElfDumpHead::kMaxAddress ||
      header.p_memsz > ElfDumpHead::kMaxAddress - header.p_paddr) {
    return make_error(ErrorKind::kDamaged,
                      "the ELF core has memory at {:#x}, {:#x} bytes, which no machine has", header.p_paddr,
                      header.p_memsz);
  }
  const u64 end = round_down(header.p_paddr + header.p_memsz, kPageSize);
  if (end <= address) return {};
  const u64 in_file = std::min<u64>(header.p_filesz, header.p_memsz);
  if (header.p_offset > file_bytes_ || in_file > file_bytes_ - header.p_offset) {
    return make_error(ErrorKind::kDamaged, "the ELF core is cut off: its memory at {:#x} is not all there",
                      header.p_paddr);
  }
  const u64 skipped = address - header.p_paddr;
  ElfDumpHead::Segment segment{address, end - address, 0, header.p_offset + std::min(skipped, in_file)};
  if (in_file > skipped)
    segment.file_bytes = std::min(segment.bytes, round_down(in_file - skipped, kPageSize));
  head_.segments.push_back(segment);
  return {};
}

void HeadReader::add_note(std::string_view name, std::span<const std::byte> content) {
  if (name == kVmcoreInfoNote && head_.vmcoreinfo.empty()) {
    head_.vmcoreinfo.assign(reinterpret_cast<const char*>(content.data()), content.size());
    head_.vmcoreinfo.resize(head_.vmcoreinfo.find_last_not_of('\0') + 1);
  }
  if (name != kQemuNote || content.size() < kStateBytes) return;
  X86Vcpu vcpu;
  vcpu.index = static_cast<u32>(x86_.size());
  vcpu.rip = load_le<u64>(&content[kRip]);
  vcpu.cs_base = load_le<u64>(&content[kCsBase]);
  vcpu.cpl = load_le<u32>(&content[kCs]) & kPrivilegeMask;
  vcpu.cr0 = load_le<u64>(&content[kCr0]);
  vcpu.cr3 = load_le<u64>(&content[kCr0 + 24]);
  vcpu.cr4 = load_le<u64>(&content[kCr0 + 32]);
  // EFER is not told, but only in long mode is there 64-bit code.
  if ((load_le<u32>(&content[kCsFlags]) & kLongCode) != 0) vcpu.efer = kLongModeActive;
  x86_.push_back(vcpu);
}

Result<void> HeadReader::add_notes(const Elf64_Phdr& header) {
  if (header.p_filesz > ElfDumpHead::kMaxNoteBytes - note_bytes_)
    return Error(ErrorKind::kUnsupported, "the ELF core's notes are too long");
  note_bytes_ += header.p_filesz;
  VMSIEVE_ASSIGN(const auto bytes, bytes_at(header.p_offset, header.p_filesz, "notes"));
  std::span<const std::byte> rest{bytes};
  while (rest.size() >= sizeof(Elf64_Nhdr)) {
    const auto note = load_struct<Elf64_Nhdr>(rest);
    rest = rest.subspan(sizeof note);
    const u64 name_room = round_up(u64{note.n_namesz}, kElfNoteAlign);
    const u64 room = name_room + round_up(u64{note.n_descsz}, kElfNoteAlign);
    // The last one's padding may be missing.
    if (name_room + note.n_descsz > rest.size())
      return Error(ErrorKind::kDamaged, "the ELF core has a note that ends behind its notes");
    const std::string_view name{reinterpret_cast<const char*>(rest.data()), note.n_namesz};
    add_note(name, rest.subspan(name_room, note.n_descsz));
    rest = rest.subspan(std::min<u64>(room, rest.size()));
  }
  return {};
}

// What an earlier one has of a segment is not taken again.
void HeadReader::settle_segments() {
  auto& segments = head_.segments;
  std::stable_sort(segments.begin(), segments.end(),
                   [](const auto& a, const auto& b) { return a.address < b.address; });
  u64 end = 0;
  std::erase_if(segments, [&](ElfDumpHead::Segment& segment) {
    if (segment.address + segment.bytes <= end) return true;
    if (segment.address < end) {
      const u64 had = end - segment.address;
      const u64 had_in_file = std::min(had, segment.file_bytes);
      segment.address += had;
      segment.bytes -= had;
      segment.offset += had_in_file;
      segment.file_bytes -= had_in_file;
    }
    end = segment.address + segment.bytes;
    return false;
  });
}

Result<ElfDumpHead> HeadReader::read() {
  VMSIEVE_ASSIGN(const auto first, bytes_at(0, sizeof(Elf64_Ehdr), "header"));
  const auto elf = load_struct<Elf64_Ehdr>(first);
  if (std::memcmp(elf.e_ident, ELFMAG, SELFMAG) != 0 || elf.e_ident[EI_CLASS] != ELFCLASS64 ||
      elf.e_ident[EI_DATA] != ELFDATA2LSB || elf.e_type != ET_CORE || elf.e_phentsize != sizeof(Elf64_Phdr)) {
    return Error(ErrorKind::kUnsupported,
                 "this is no ELF64 core of a little-endian machine, as dump-guest-memory writes one");
  }
  VMSIEVE_ASSIGN(const u64 count, count_headers(elf));
  if (count > ElfDumpHead::kMaxSegments)
    return make_error(ErrorKind::kUnsupported, "the ELF core has {} segments, {} are the most", count,
                      ElfDumpHead::kMaxSegments);
  VMSIEVE_ASSIGN(const auto headers, bytes_at(elf.e_phoff, count * sizeof(Elf64_Phdr), "program headers"));
  for (u64 i = 0; i < count; ++i) {
    const auto header = load_struct<Elf64_Phdr>(std::span{headers}.subspan(i * sizeof(Elf64_Phdr)));
    if (header.p_type == PT_LOAD) VMSIEVE_TRY(add_segment(header));
    if (header.p_type == PT_NOTE) VMSIEVE_TRY(add_notes(header));
  }
  settle_segments();
  if (head_.segments.empty()) return Error(ErrorKind::kUnsupported, "the ELF core holds no memory");
  if (elf.e_machine == EM_X86_64 && !x86_.empty()) {
    head_.vcpus = std::move(x86_);
  } else {
    head_.vcpus = UnknownVcpus{elf.e_machine == EM_AARCH64 ? "aarch64" : "", 0};
  }
  return std::move(head_);
}

}  // namespace

Result<ElfDumpHead> ElfDumpHead::read(const ReadFunction& file, u64 file_bytes) {
  return HeadReader(file, file_bytes).read();
}

ElfDump::ElfDump(UniqueFd file, std::string path, ElfDumpHead head)
    : file_(std::move(file)), path_(std::move(path)), head_(std::move(head)) {
  for (const ElfDumpHead::Segment& segment : head_.segments) {
    const PfnRange range{Pfn{GuestPhysical{segment.address}}, segment.bytes >> kPageShift};
    if (!ram_.empty() && ram_.back().end() == range.first.value) {
      ram_.back().count += range.count;
    } else {
      ram_.push_back(range);
    }
  }
}

Result<std::unique_ptr<ElfDump>> ElfDump::open(UniqueFd file, u64 file_bytes, std::string path) {
  const auto read = [&](u64 offset, std::span<std::byte> out) {
    return pread_exact(file.get(), out, offset, path);
  };
  VMSIEVE_ASSIGN(ElfDumpHead head, ElfDumpHead::read(read, file_bytes));
  return std::unique_ptr<ElfDump>(new ElfDump(std::move(file), std::move(path), std::move(head)));
}

Result<void> ElfDump::read(GuestPhysical address, std::span<std::byte> out) const {
  const auto& segments = head_.segments;
  u64 at = address.value;
  auto segment = std::partition_point(segments.begin(), segments.end(),
                                      [&](const auto& s) { return s.address + s.bytes <= at; });
  while (!out.empty()) {
    if (segment == segments.end() || at < segment->address) {
      return make_error(ErrorKind::kDamaged, "{:#x} is not in the dump's memory", at);
    }
    const u64 into = at - segment->address;
    const std::span<std::byte> piece = out.first(std::min<u64>(out.size(), segment->bytes - into));
    const u64 in_file =
        into < segment->file_bytes ? std::min<u64>(piece.size(), segment->file_bytes - into) : 0;
    if (in_file != 0)
      VMSIEVE_TRY(pread_exact(file_.get(), piece.first(in_file), segment->offset + into, path_));
    std::ranges::fill(piece.subspan(in_file), std::byte{0});
    out = out.subspan(piece.size());
    at += piece.size();
    ++segment;
  }
  return {};
}

std::vector<PfnRange> ElfDump::resident(PfnRange range) const {
  std::vector<PfnRange> found;
  const auto& segments = head_.segments;
  auto segment = std::partition_point(segments.begin(), segments.end(), [&](const auto& s) {
    return (s.address + s.bytes) >> kPageShift <= range.first.value;
  });
  for (; segment != segments.end() && segment->address >> kPageShift < range.end(); ++segment) {
    const u64 first = std::max(range.first.value, segment->address >> kPageShift);
    const u64 end = std::min(range.end(), (segment->address + segment->file_bytes) >> kPageShift);
    if (first >= end) continue;
    if (!found.empty() && found.back().end() == first) {
      found.back().count += end - first;
    } else {
      found.push_back({Pfn{first}, end - first});
    }
  }
  return found;
}

}  // namespace vmsieve
