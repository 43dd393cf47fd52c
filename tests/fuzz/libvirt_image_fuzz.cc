// SPDX-License-Identifier: Apache-2.0
// The head of an image of `virsh save`.
#include <cstdint>
#include <cstdlib>

#include "vmsieve/formats/libvirt_image.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmsieve;
  const auto bytes = std::as_bytes(std::span{data, size});
  auto head = LibvirtImageHead::decode_fixed(bytes);
  if (!head) return 0;
  if (head->stream_offset <= LibvirtImageHead::kFixedBytes ||
      head->stream_offset > LibvirtImageHead::kFixedBytes + LibvirtImageHead::kMaxDataBytes)
    std::abort();
  if (head->stream_offset > size) return 0;
  const auto xml =
      bytes.subspan(LibvirtImageHead::kFixedBytes, head->stream_offset - LibvirtImageHead::kFixedBytes);
  if (head->take_xml(xml) && (head->xml.empty() || head->xml.find('\0') != std::string::npos)) std::abort();
  return 0;
}
