// SPDX-License-Identifier: Apache-2.0
// The headers and notes of an ELF core: what is taken is ordered memory that lies in the file.
#include <cstdint>
#include <cstring>

#include "vmsieve/formats/elf_dump.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmsieve;
  const auto read = [&](u64 offset, std::span<std::byte> out) -> Result<void> {
    VMSIEVE_CHECK(offset <= size && out.size() <= size - offset);
    if (!out.empty()) std::memcpy(out.data(), data + offset, out.size());
    return {};
  };
  const auto head = ElfDumpHead::read(read, size);
  if (!head.ok()) return 0;
  VMSIEVE_CHECK(!head->segments.empty());
  u64 end = 0;
  for (const ElfDumpHead::Segment& segment : head->segments) {
    VMSIEVE_CHECK(segment.bytes != 0 && segment.address >= end);
    VMSIEVE_CHECK(segment.address % kPageSize == 0 && segment.bytes % kPageSize == 0);
    VMSIEVE_CHECK(segment.file_bytes <= segment.bytes);
    VMSIEVE_CHECK(segment.offset <= size && segment.file_bytes <= size - segment.offset);
    end = segment.address + segment.bytes;
    VMSIEVE_CHECK(end <= ElfDumpHead::kMaxAddress);
  }
  return 0;
}
