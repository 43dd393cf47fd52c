// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/migration_stream.h"

#include <limits>

#include "vmsieve/base/endian.h"

namespace vmsieve {

namespace {

// QEMU migration/savevm.h
constexpr u32 kMagic = 0x5145564d;  // "QEVM"
constexpr u32 kVersion = 3;
constexpr u8 kEof = 0x00;
constexpr u8 kSectionStart = 0x01;
constexpr u8 kSectionEnd = 0x03;
constexpr u8 kSectionFull = 0x04;
constexpr u8 kSubsection = 0x05;
constexpr u8 kVmDescription = 0x06;
constexpr u8 kConfiguration = 0x07;
constexpr u8 kSectionFooter = 0x7e;

// QEMU migration/ram.c, RAM_SAVE_FLAG_*; they travel in the low bits of a page's offset.
constexpr u64 kFlagZero = 0x02;
constexpr u64 kFlagMemSize = 0x04;
constexpr u64 kFlagPage = 0x08;
constexpr u64 kFlagEos = 0x10;
constexpr u64 kFlagContinue = 0x20;

constexpr u32 kRamVersion = 4;

// struct MappedRamHeader, MAPPED_RAM_FILE_OFFSET_ALIGNMENT
constexpr u32 kMappedRamVersion = 1;
constexpr u64 kMappedHeaderBytes = 28;
constexpr u64 kMappedAlignment = kMiB;

/// QEMU numbers its own sections from 0 up; the reader takes any number, but looks sections up by it, so
/// ours must be one that no device has.
constexpr u32 kRamSectionId = 0x766d7376;

constexpr std::size_t kBufferBytes = kMiB;
constexpr std::size_t kMaxNameBytes = 255;

/// QEMU reads and ignores it, and warns when it is missing. An empty one is well-formed for the tools that
/// read it.
constexpr std::string_view kDescription = R"({"configuration":{},"page_size":4096,"devices":[]})";

constexpr std::size_t kHeaderBytes = 8;
constexpr std::size_t kFooterBytes = 5;

void append_str8(std::vector<std::byte>& out, std::string_view text) {
  append_be(out, static_cast<u8>(text.size()));
  append_bytes(out, as_byte_span(text));
}

}  // namespace

MigrationStreamWriter::MigrationStreamWriter(ByteSink sink, std::string machine_type,
                                             std::vector<StreamBlock> blocks, StreamFormat format)
    : sink_(std::move(sink)),
      machine_type_(std::move(machine_type)),
      blocks_(std::move(blocks)),
      format_(format) {
  buffer_.reserve(kBufferBytes + 2 * kPageSize);
}

Result<void> MigrationStreamWriter::begin() {
  u64 total = 0;
  for (const StreamBlock& block : blocks_) {
    if (block.name.empty() || block.name.size() > kMaxNameBytes) {
      return make_error(ErrorKind::kUnsupported,
                        "a RAM block's name of {} bytes cannot be said in a migration stream (1 to {} can)",
                        block.name.size(), kMaxNameBytes);
    }
    // The sum shares its low bits with the flags, and QEMU's blocks are whole pages anyway.
    if (block.used_bytes % kPageSize != 0 || block.used_bytes > std::numeric_limits<u64>::max() - total) {
      return make_error(ErrorKind::kUnsupported,
                        "RAM block {} of {:#x} bytes cannot be said in a migration stream", block.name,
                        block.used_bytes);
    }
    total += block.used_bytes;
  }

  append_be(buffer_, kMagic);
  append_be(buffer_, kVersion);
  if (format_.configuration) {
    append_be(buffer_, kConfiguration);
    append_be(buffer_, static_cast<u32>(machine_type_.size()));
    append_bytes(buffer_, as_byte_span(machine_type_));
    // Where the size of pages may vary (arm), a reader that is not told takes the smallest one and refuses;
    // where it may not, it compares (migration/savevm.c, vmstate_target_page_bits, since 2.9).
    append_be(buffer_, kSubsection);
    append_str8(buffer_, "configuration/target-page-bits");
    append_be(buffer_, u32{1});  // version
    append_be(buffer_, static_cast<u32>(kPageShift));
    if (seek_) {
      // The reader compares (migration/savevm.c, configuration_validate_capabilities).
      append_be(buffer_, kSubsection);
      append_str8(buffer_, "configuration/capabilities");
      append_be(buffer_, u32{1});  // version
      append_be(buffer_, u32{1});  // how many
      append_str8(buffer_, "mapped-ram");
    }
  }

  append_be(buffer_, kSectionStart);
  append_be(buffer_, kRamSectionId);
  append_str8(buffer_, "ram");
  append_be(buffer_, u32{0});  // instance
  append_be(buffer_, kRamVersion);
  append_be(buffer_, total | kFlagMemSize);
  for (const StreamBlock& block : blocks_) {
    append_str8(buffer_, block.name);
    append_be(buffer_, block.used_bytes);
    if (seek_) VMSIEVE_TRY(map_block(block));
    VMSIEVE_TRY(flush_if_full());
  }
  append_be(buffer_, kFlagEos);
  footer();

  append_be(buffer_, kSectionEnd);
  append_be(buffer_, kRamSectionId);
  return flush_if_full();
}

Result<void> MigrationStreamWriter::map_block(const StreamBlock& block) {
  const u64 bitmap_bytes = round_up(block.used_bytes / kPageSize, 64) / 8;
  MappedBlock mapped;
  mapped.bitmap_offset = flushed_ + buffer_.size() + kMappedHeaderBytes;
  mapped.pages_offset = round_up(mapped.bitmap_offset + bitmap_bytes, kMappedAlignment);
  append_be(buffer_, kMappedRamVersion);
  append_be(buffer_, kPageSize);
  append_be(buffer_, mapped.bitmap_offset);
  append_be(buffer_, mapped.pages_offset);
  VMSIEVE_TRY(flush());
  flushed_ = mapped.pages_offset + block.used_bytes;
  mapped_.push_back(mapped);
  return seek_(flushed_);
}

Result<void> MigrationStreamWriter::pages(u32 block, u64 first_page, std::span<const std::byte> bytes) {
  VMSIEVE_CHECK(bytes.size() % kPageSize == 0);
  VMSIEVE_TRY(check_range(block, first_page, bytes.size() / kPageSize));
  for (u64 page = first_page; !bytes.empty(); ++page) {
    page_header(block, page, kFlagPage);
    append_bytes(buffer_, bytes.first(kPageSize));
    bytes = bytes.subspan(kPageSize);
    VMSIEVE_TRY(flush_if_full());
  }
  return {};
}

Result<void> MigrationStreamWriter::fill_pages(u32 block, u64 first_page, u64 count, u8 fill) {
  VMSIEVE_TRY(check_range(block, first_page, count));
  for (u64 page = first_page; page < first_page + count; ++page) {
    page_header(block, page, fill == 0 ? kFlagZero : kFlagPage);
    buffer_.resize(buffer_.size() + (fill == 0 ? 1 : kPageSize), std::byte{fill});
    VMSIEVE_TRY(flush_if_full());
  }
  return {};
}

Result<void> MigrationStreamWriter::finish(std::span<const std::byte> device_state) {
  VMSIEVE_ASSIGN(std::span<const std::byte> sections, device_sections(device_state));
  append_be(buffer_, kFlagEos);
  footer();
  append_bytes(buffer_, sections);
  append_be(buffer_, kEof);
  append_be(buffer_, kVmDescription);
  append_be(buffer_, static_cast<u32>(kDescription.size()));
  append_bytes(buffer_, as_byte_span(kDescription));
  return flush();
}

Result<void> MigrationStreamWriter::check_range(u32 block, u64 first_page, u64 count) const {
  VMSIEVE_CHECK(block < blocks_.size());
  const u64 pages = blocks_[block].used_bytes / kPageSize;
  if (first_page > pages || count > pages - first_page) {
    return make_error(ErrorKind::kDamaged,
                      "{} pages at page {:#x} are not inside RAM block {} of {:#x} pages", count, first_page,
                      blocks_[block].name, pages);
  }
  return {};
}

void MigrationStreamWriter::page_header(u32 block, u64 page, u64 flags) {
  if (block == last_block_) {
    append_be(buffer_, (page << kPageShift) | flags | kFlagContinue);
    return;
  }
  append_be(buffer_, (page << kPageShift) | flags);
  append_str8(buffer_, blocks_[block].name);
  last_block_ = block;
}

void MigrationStreamWriter::footer() {
  if (!format_.section_footers) return;
  append_be(buffer_, kSectionFooter);
  append_be(buffer_, kRamSectionId);
}

Result<void> MigrationStreamWriter::flush_if_full() {
  if (buffer_.size() < kBufferBytes) return {};
  return flush();
}

Result<void> MigrationStreamWriter::flush() {
  VMSIEVE_TRY(sink_(buffer_));
  flushed_ += buffer_.size();
  buffer_.clear();
  return {};
}

Result<std::span<const std::byte>> device_sections(std::span<const std::byte> device_state) {
  if (device_state.size() < kHeaderBytes + 1 || load_be<u32>(device_state.data()) != kMagic) {
    return make_error(ErrorKind::kDamaged, "{} bytes of device state do not begin with QEMU's magic QEVM",
                      device_state.size());
  }
  const u32 version = load_be<u32>(device_state.data() + 4);
  if (version != kVersion) {
    return make_error(ErrorKind::kUnsupported, "device state of QEMU's stream version {}, only {} is known",
                      version, kVersion);
  }
  const auto sections = device_state.subspan(kHeaderBytes, device_state.size() - kHeaderBytes - 1);
  if (device_state.back() != std::byte{kEof}) {
    return make_error(ErrorKind::kDamaged, "{} bytes of device state do not end with QEMU's end mark",
                      device_state.size());
  }
  if (!sections.empty() && sections.front() != std::byte{kSectionFull}) {
    return make_error(ErrorKind::kDamaged, "device state begins with section type {:#04x}, not {:#04x}",
                      static_cast<u8>(sections.front()), kSectionFull);
  }
  return sections;
}

bool has_section_footers(std::span<const std::byte> sections) {
  if (sections.size() < kFooterBytes) return false;
  // Without footers a section ends with a device's own bytes: these five would have to look like a footer
  // with a number that QEMU gives only to the 65536th device.
  const std::byte* footer = sections.data() + sections.size() - kFooterBytes;
  return *footer == std::byte{kSectionFooter} && load_be<u32>(footer + 1) < 0x10000;
}

}  // namespace vmsieve
