// SPDX-License-Identifier: Apache-2.0
// The first bytes of a disk image, as they come and behind the magic of qcow2: a backing file's name lies in
// them, and what it is as a path is told or refused.
#include <cstddef>
#include <cstdint>
#include <string>

#include "vmsieve/disks/image_file.h"
#include "vmsieve/qemu/machine.h"

namespace {

using namespace vmsieve;

void look_at(std::string_view head) {
  const auto name = backing_in_header(head);
  if (!name.ok() || !*name) return;
  VMSIEVE_CHECK(!(*name)->empty() && (*name)->size() <= 1023);
  VMSIEVE_CHECK(head.find(**name) != std::string_view::npos);
  VMSIEVE_CHECK((*name)->find('\0') == std::string::npos);
  const auto path = image_path(**name);
  VMSIEVE_CHECK(!path || !path->empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string head(reinterpret_cast<const char*>(data), size);
  look_at(head);
  look_at("QFI\xfb" + head);
  // The name right behind the shortest header, as long as it may be.
  std::string named(72, '\0');
  named.replace(0, 4, "QFI\xfb");
  named[15] = 72;
  named[18] = static_cast<char>(size >> 8 & 0xff);
  named[19] = static_cast<char>(size & 0xff);
  look_at(named + head);
  return 0;
}
