// SPDX-License-Identifier: Apache-2.0
// A recorded command line, arguments separated by NUL: taken apart and put together it is the same, and
// rewriting it for a restore ends. A disk that is replaced is found again by its new image, and nothing but
// values changes.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/restore/command_line.h"

namespace {

using namespace vmsieve;

void replace_image(QemuCommandLine line) {
  const std::vector<QemuOption> before = line.options();
  if (!line.replace_image({"/i", "/b,c"}, "/o,p", "/")) return;
  VMSIEVE_CHECK(line.options().size() == before.size());
  for (std::size_t i = 0; i < before.size(); ++i) VMSIEVE_CHECK(line.options()[i].name == before[i].name);
  const auto again = QemuCommandLine::parse(line.arguments());
  VMSIEVE_CHECK(again.ok() && again->options() == line.options());
  // QEMU would not take a -drive that begins like JSON.
  const bool refused = std::ranges::any_of(line.options(), [](const QemuOption& option) {
    return option.name == "drive" && option.value->starts_with('{');
  });
  VMSIEVE_CHECK(refused || line.replace_image({"/o,p"}, "/third", "/elsewhere"));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
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
  replace_image(*line);
  const std::vector<std::string> begun = {"-drive", "file=/i,", "-blockdev", "file,filename=/i,"};
  for (std::size_t i = 0; i < begun.size(); i += 2) {
    const auto disk =
        QemuCommandLine::parse({begun[i], begun[i + 1] + arguments.front(), "-blockdev", arguments.back()});
    if (disk.ok()) replace_image(*disk);
  }
  line->pin_machine("pc-q35-7.2");
  line->pin_accelerator("tcg");
  line->strip_for_restore();
  VMSIEVE_CHECK(QemuCommandLine::parse(line->arguments()).ok());
  // What a user sets may make no sense; it is parsed again before QEMU sees it.
  if (line->set(arguments.front()).ok()) (void)QemuCommandLine::parse(line->arguments());
  return 0;
}
