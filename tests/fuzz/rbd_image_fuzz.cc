// SPDX-License-Identifier: Apache-2.0
// What QEMU or a command line calls an image, of any bytes: an image in a cluster is known again by what
// qemu-img is told of it.
#include <cstddef>
#include <cstdint>
#include <string>

#include "vmsieve/qemu/rbd_image.h"

namespace {

using namespace vmsieve;

void check(const std::string& file) {
  const auto image = rbd_image(file);
  if (!image) return;
  VMSIEVE_CHECK(image->name.starts_with("rbd:"));
  const auto filename = rbd_filename(image->options, "snapshot");
  VMSIEVE_CHECK(filename.ok());
  const auto again = rbd_image(*filename);
  VMSIEVE_CHECK(again && again->name == image->name && again->options == image->options &&
                again->is_snapshot);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  check(text);
  check("rbd:" + text);
  check("json:" + text);
  (void)rbd_filename(text, text);
  return 0;
}
