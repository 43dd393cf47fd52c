// SPDX-License-Identifier: Apache-2.0
// A kernel image that is anything, or good tables of kallsyms that are patched: searched for tables,
// which are read and asked for names.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "support/fake_kallsyms.h"
#include "support/fake_tables.h"
#include "vmsieve/guest/kallsyms_search.h"

namespace {

using namespace vmsieve;
using testing::FakeKallsyms;
using Offsets = testing::FakeKallsymsOptions::Offsets;

constexpr GuestVirtual kImage{FakeKallsyms::kRelativeBase};
constexpr GuestPhysical kPhysical{0x10'0000};
constexpr u64 kTablesAt = 0x1000;
constexpr u64 kImageBytes = 4 * kPageSize;

// Mapped, with the banner at its begin.
struct Image {
  Image() : memory({{Pfn{0}, 0x200}}), tables(memory, 4, Pfn{0x10}, Pfn{0x11}) {
    tables.map_range(kImage, kPhysical, kImageBytes, 12);
  }
  testing::FakeMemory memory;
  testing::FakeTables tables;
};

std::vector<std::byte> good(unsigned kind) {
  const Offsets offsets[] = {Offsets::kBaseRelative, Offsets::kAbsolutePerCpu, Offsets::kPlaceRelative};
  const FakeKallsyms made({{'D', "linux_banner", kImage}, {'B', "hugetlb_lock", kImage + 0x8000}},
                          kImage + kTablesAt,
                          {.offsets = offsets[kind % 3],
                           .offsets_first = kind >= 3,
                           .sequences = kind % 2 == 1,
                           .names_at_once = kind == 5,
                           .fillers = 300});
  std::vector<std::byte> bytes(kImageBytes);
  std::ranges::copy(as_byte_span("Linux version 6.12.0-fake"), bytes.begin());
  VMSIEVE_CHECK(made.bytes().size() <= kImageBytes - kTablesAt);
  std::ranges::copy(made.bytes(), bytes.begin() + kTablesAt);
  return bytes;
}

}  // namespace

// The first byte: one of the five encodings, patched with (offset, 4 bytes) pairs, or else all is image.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  static Image image;
  static const std::array<std::vector<std::byte>, 6> whole{good(0), good(1), good(2),
                                                           good(3), good(4), good(5)};
  const std::span input(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  std::vector<std::byte> bytes(kImageBytes);
  if (data[0] % 7 < whole.size()) {
    bytes = whole[data[0] % 7];
    for (std::size_t at = 0; at + 6 <= input.size(); at += 6) {
      const u64 offset = load_le<u16>(&input[at]) % (bytes.size() - 3);
      std::copy_n(&input[at + 2], 4, &bytes[offset]);
    }
  } else {
    std::copy_n(input.begin(), std::min(input.size(), bytes.size()), bytes.begin());
  }
  const auto places = find_kallsyms_in(bytes, kImage);
  VMSIEVE_CHECK(places.size() <= 48);
  if (places.empty()) return 0;
  image.memory.write(kPhysical, bytes);
  for (const Kallsyms::Place& place : places) {
    const auto found = Kallsyms::read_at(image.memory, image.tables.root(), place);
    if (!found.ok()) continue;
    VMSIEVE_CHECK(found->size() > 0 && found->address("linux_banner"));
    constexpr std::string_view names[] = {"hugetlb_lock", "filler_7", "", "none"};
    VMSIEVE_CHECK(found->addresses(names).size() == 4);
  }
  return 0;
}
