// SPDX-License-Identifier: Apache-2.0
// A recorded command line, arguments separated by NUL: taken apart and put together it is the same, and
// rewriting it for a restore ends.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/restore/command_line.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmsieve;
  std::vector<std::string> arguments(1);
  for (std::size_t i = 0; i < size; ++i) {
    if (data[i] == 0) {
      arguments.emplace_back();
    } else {
      arguments.back().push_back(static_cast<char>(data[i]));
    }
  }
  auto line = QemuCommandLine::parse(arguments);
  if (!line.ok()) return 0;
  const auto again = QemuCommandLine::parse(line->arguments());
  VMSIEVE_CHECK(again.ok() && again->options() == line->options());
  line->pin_machine("pc-q35-7.2");
  line->pin_accelerator("tcg");
  line->strip_for_restore();
  VMSIEVE_CHECK(QemuCommandLine::parse(line->arguments()).ok());
  // What a user sets may make no sense; it is parsed again before QEMU sees it.
  if (line->set(arguments.front()).ok()) (void)QemuCommandLine::parse(line->arguments());
  return 0;
}
