// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/capture/inspect.h"

namespace vmsieve {

/// What a picture is made of; coordinates in pixels, from the upper left corner.
struct Shape {
  enum class Kind { kRectangle, kLine, kText };
  enum class Anchor { kStart, kMiddle, kEnd };

  Kind kind = Kind::kRectangle;
  double x = 0, y = 0;
  double width = 0, height = 0;  ///< of a line: how far it goes
  u32 color = 0;                 ///< 0xRRGGBB
  double size = 0;               ///< of text: its height; of a line: its width
  bool bold = false;
  Anchor anchor = Anchor::kStart;
  std::string text;
};

struct Picture {
  double width = 0;
  double height = 0;
  std::vector<Shape> shapes;  ///< later ones are in front
};

/// Draws where a guest's memory is: a bar of shares; the guest-physical memory as a map, each cell coloured
/// by what most of its pages are, rows from left to right, with the borders of nodes and zones; and a legend
/// with bytes and shares. Needs `inspection.classes`: kUnsupported with the reason when there are none.
Result<Picture> draw_memory_map(const Inspection& inspection);

/// SVG 1.1, text as text.
std::string to_svg(const Picture& picture);

/// The bytes of a PNG file. Needs any sans-serif font on the machine.
Result<std::string> to_png(const Picture& picture);

}  // namespace vmsieve
