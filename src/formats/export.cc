// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/export.h"

#include <algorithm>

#include "vmsieve/formats/elf_core.h"
#include "vmsieve/formats/guest_file.h"
#include "vmsieve/formats/libvirt_image.h"
#include "vmsieve/formats/output_file.h"
#include "vmsieve/guest/vmcoreinfo.h"
#include "vmsieve/qemu/migration_stream.h"
#include "vmsieve/restore/frame_feed.h"
#include "vmsieve/restore/memory_sender.h"

namespace vmsieve {

namespace {

constexpr std::size_t kMostImagePieces = 1024;

/// NUMBER(kimage_voffset) is arm64's own (arch/arm64/kernel/vmcore_info.c), the program's and the machine's
/// names are QEMU's.
ElfMachine machine_of(const Manifest& manifest) {
  const bool arm64 = manifest.introspection.vmcoreinfo.find("NUMBER(kimage_voffset)") != std::string::npos ||
                     manifest.qemu_executable.find("aarch64") != std::string::npos ||
                     manifest.machine_type.starts_with("virt-");
  return arm64 ? ElfMachine::kArm64 : ElfMachine::kX86;
}

/// `zeros_too`: for a QEMU of which it is not known that its memory is new.
Result<u64> write_stream(const CheckpointReader& reader, OutputFile& file, bool zeros_too, unsigned threads,
                         const ProgressFunction& progress) {
  const Manifest& manifest = reader.manifest();
  VMSIEVE_ASSIGN(const std::vector<std::byte> device_state, reader.device_state());
  VMSIEVE_ASSIGN(const auto sections, device_sections(device_state));
  // Machine types have both or neither (StreamFormat).
  const bool footers = has_section_footers(sections);
  reader.expect_one_pass();
  FrameFeed feed(reader, frame_jobs(reader.index()), threads);
  MigrationStreamWriter writer([&](std::span<const std::byte> bytes) { return file.append(bytes); },
                               manifest.machine_type, stream_layout(reader.index()).blocks,
                               {footers, footers});
  VMSIEVE_TRY(writer.begin());
  VMSIEVE_TRY(send_memory(manifest.blocks, reader.index(), feed, writer, zeros_too, {}, progress));
  VMSIEVE_TRY(writer.finish(device_state));
  return file.appended_bytes();
}

/// Which pages of a block are in the file. Of main memory those that hold something; of all others every one,
/// since a new QEMU has bytes of its own there.
std::vector<std::byte> mapped_bitmap(const BlockIndex& block, bool guest_ram) {
  std::vector<std::byte> bitmap(round_up(block.pages(), 64) / 8);
  for (const PageRun& run : block.runs) {
    if (guest_ram && run.kind != RunKind::kData && run.fill == 0) continue;
    for (u64 page = run.first_page; page < run.first_page + run.pages; ++page)
      bitmap[page / 8] |= std::byte{1} << (page % 8);
  }
  return bitmap;
}

Result<u64> write_mapped_ram(const CheckpointReader& reader, OutputFile& file, unsigned threads,
                             const ProgressFunction& progress) {
  const Manifest& manifest = reader.manifest();
  const MemoryIndex& index = reader.index();
  VMSIEVE_ASSIGN(const std::vector<std::byte> device_state, reader.device_state());
  VMSIEVE_ASSIGN(const auto sections, device_sections(device_state));
  const bool footers = has_section_footers(sections);
  const StreamLayout layout = stream_layout(index);
  u64 position = 0;
  const auto put = [&](std::span<const std::byte> bytes) -> Result<void> {
    VMSIEVE_TRY(file.write_at(position, bytes));
    position += bytes.size();
    return {};
  };
  MigrationStreamWriter writer(put, manifest.machine_type, layout.blocks, {footers, footers});
  writer.map_ram([&](u64 offset) -> Result<void> {
    position = offset;
    return {};
  });
  VMSIEVE_TRY(writer.begin());
  VMSIEVE_TRY(writer.finish(device_state));

  std::vector<FileSegment> segments;
  for (u32 block = 0; block < index.blocks.size(); ++block) {
    if (layout.of_index[block] == StreamLayout::kNone) continue;
    const MappedBlock& mapped = writer.mapped()[layout.of_index[block]];
    VMSIEVE_TRY(file.write_at(mapped.bitmap_offset,
                              mapped_bitmap(index.blocks[block], manifest.blocks[block].guest_ram)));
    const u64 pages = index.blocks[block].pages();
    segments.push_back({0, pages, pages, mapped.pages_offset, block, 0});
  }
  VMSIEVE_TRY(write_segments(reader, segments, threads, file, progress));
  return position;
}

Result<u64> write_raw(const CheckpointReader& reader, OutputFile& file, unsigned threads,
                      const ProgressFunction& progress) {
  const std::vector<FileSegment> segments = segments_by_address(reader.manifest());
  VMSIEVE_TRY(write_segments(reader, segments, threads, file, progress));
  u64 end = 0;
  for (const FileSegment& segment : segments)
    end = std::max(end, segment.address + segment.pages * kPageSize);
  return end;
}

/// The kernel's image once more, with the addresses at which it is mapped, as a kernel's own core has it:
/// makedumpfile tells by the first one where a kernel with KASLR is, and drgn reads the kernel's own page
/// tables there, by which it reads everything else. In pieces, since memory that only the kernel's start
/// needed is free and left out. None when its beginning is not in the file.
std::vector<FileSegment> kernel_image(ElfMachine machine, std::string_view vmcoreinfo,
                                      const std::vector<FileSegment>& segments) {
  constexpr u64 kImageBytes = 64 * kMiB;
  constexpr u64 kX86Map = 0xffffffff80000000;  // __START_KERNEL_map, arch/x86/include/asm/page_64_types.h
  const auto info = VmcoreInfo::parse(vmcoreinfo);
  if (!info.ok()) return {};
  const auto text = info->symbol("_stext");
  const auto base = info->number(machine == ElfMachine::kX86 ? "phys_base" : "kimage_voffset");
  if (!text || !base) return {};
  const u64 virtual_address = round_down(text->value, kPageSize);
  const u64 address = machine == ElfMachine::kX86 ? virtual_address - kX86Map + static_cast<u64>(*base)
                                                  : virtual_address - static_cast<u64>(*base);
  const u64 end = address + kImageBytes;
  if (address % kPageSize != 0 || end < address || virtual_address > ~u64{0} - kImageBytes) return {};
  std::vector<FileSegment> pieces;
  for (const FileSegment& segment : segments) {
    const u64 first = std::max(address, segment.address);
    const u64 last = std::min(end, segment.address + segment.file_pages * kPageSize);
    if (first >= last) continue;
    FileSegment& piece = pieces.emplace_back(segment);
    piece.address = first;
    piece.offset += first - segment.address;
    piece.file_pages = piece.pages = (last - first) >> kPageShift;
    piece.virtual_address = virtual_address + (first - address);
    if (pieces.size() == kMostImagePieces) break;
  }
  if (pieces.empty() || pieces.front().address != address) return {};
  return pieces;
}

Result<u64> write_elf(const CheckpointReader& reader, OutputFile& file, unsigned threads,
                      const ProgressFunction& progress) {
  const Manifest& manifest = reader.manifest();
  const std::string& vmcoreinfo = manifest.introspection.vmcoreinfo;
  const ElfMachine machine = machine_of(manifest);
  // The note has a header too.
  std::vector<FileSegment> segments =
      segments_without_free(manifest, reader.index(), 0, kMostElfSegments - kMostImagePieces - 1);
  const std::size_t pieces = kernel_image(machine, vmcoreinfo, segments).size();
  const u64 head = elf_head_bytes(segments.size() + pieces, vmcoreinfo);
  u64 end = head;
  for (FileSegment& segment : segments) {
    segment.offset += head;
    // Left out pages too: makedumpfile maps as much of the file as a segment has memory (elf_info.c,
    // max_file_offset), and would run off its end.
    end = std::max(end, segment.offset + segment.pages * kPageSize);
  }
  std::vector<FileSegment> shown = kernel_image(machine, vmcoreinfo, segments);
  shown.insert(shown.end(), segments.begin(), segments.end());
  VMSIEVE_TRY(file.write_at(0, elf_head(machine, shown, vmcoreinfo)));
  VMSIEVE_TRY(write_segments(reader, segments, threads, file, progress));
  return end;
}

bool is_stream(ExportFormat format) {
  return format == ExportFormat::kQemu || format == ExportFormat::kLibvirt;
}

const std::string& domain_xml(const CheckpointReader& reader, const ExportOptions& options) {
  return options.domain_xml.empty() ? reader.manifest().libvirt.xml : options.domain_xml;
}

Result<void> check_domain_xml(const CheckpointReader& reader, const ExportOptions& options) {
  const std::string& xml = domain_xml(reader, options);
  if (xml.empty()) {
    return Error(ErrorKind::kUsage,
                 "the checkpoint was not taken of libvirt:NAME: the domain's XML must be given (--xml FILE)");
  }
  if (xml.size() >= LibvirtImageHead::kMaxDataBytes || xml.find('\0') != std::string::npos ||
      xml.find("<domain") == std::string::npos)
    return Error(ErrorKind::kUsage, "this is no XML of a domain");
  return {};
}

}  // namespace

std::optional<ExportFormat> parse_export_format(std::string_view name) {
  if (name == "qemu") return ExportFormat::kQemu;
  if (name == "qemu-mapped-ram") return ExportFormat::kQemuMappedRam;
  if (name == "libvirt") return ExportFormat::kLibvirt;
  if (name == "raw") return ExportFormat::kRaw;
  if (name == "elf") return ExportFormat::kElf;
  return std::nullopt;
}

Result<ExportReport> export_checkpoint(const CheckpointReader& reader, const ExportOptions& options,
                                       const std::string& path, const ProgressFunction& progress) {
  const ExportFormat format = options.format;
  const unsigned threads = options.threads;
  if (path == "-" && !is_stream(format)) {
    return Error(ErrorKind::kUsage, "only a migration stream can be written to standard output");
  }
  if (path.empty()) return Error(ErrorKind::kUsage, "there is no name for the file to write");
  // Before it is opened, which waits for a reader.
  if (OutputFile::would_be_stream(path) && !is_stream(format))
    return make_error(ErrorKind::kUsage, "only a migration stream can be written to the FIFO {}", path);
  if (format == ExportFormat::kLibvirt) VMSIEVE_TRY(check_domain_xml(reader, options));
  VMSIEVE_ASSIGN(const auto file, OutputFile::create(path));
  const auto write = [&]() -> Result<u64> {
    switch (format) {
      case ExportFormat::kLibvirt: {
        const std::string& xml = domain_xml(reader, options);
        VMSIEVE_TRY(file->append(LibvirtImageHead::encode(xml, reader.manifest().was_running)));
        return write_stream(reader, *file, true, threads, progress);
      }
      case ExportFormat::kQemu: return write_stream(reader, *file, false, threads, progress);
      case ExportFormat::kQemuMappedRam: return write_mapped_ram(reader, *file, threads, progress);
      case ExportFormat::kRaw: return write_raw(reader, *file, threads, progress);
      case ExportFormat::kElf: return write_elf(reader, *file, threads, progress);
    }
    return Error(ErrorKind::kUsage, "there is no such format");
  };
  VMSIEVE_ASSIGN(const u64 bytes, write());
  VMSIEVE_TRY(file->finish(bytes));
  return ExportReport{bytes, file->allocated_bytes()};
}

Result<u64> export_libvirt_stream(const CheckpointReader& reader, unsigned threads, UniqueFd pipe,
                                  const ProgressFunction& progress) {
  const auto file = OutputFile::stream(std::move(pipe), "libvirt's pipe");
  return write_stream(reader, *file, true, threads, progress);
}

}  // namespace vmsieve
