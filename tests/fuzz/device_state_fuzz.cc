// SPDX-License-Identifier: Apache-2.0
// Device state out of a damaged checkpoint: refused, or its sections lie inside it.
#include <cstddef>
#include <cstdint>
#include <span>

#include "vmsieve/base/result.h"
#include "vmsieve/qemu/migration_stream.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmsieve;
  const std::span<const std::byte> state = std::as_bytes(std::span(data, size));
  const auto sections = device_sections(state);
  if (!sections.ok()) return 0;
  VMSIEVE_CHECK(sections->data() >= state.data());
  VMSIEVE_CHECK(sections->data() + sections->size() <= state.data() + state.size());
  (void)has_section_footers(*sections);
  return 0;
}
