// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/picture/memory_map.h"

namespace vmsieve {
namespace {

// The guest's names are in the text: nothing of them may be markup, nor a character that XML forbids.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += (c >= 0x20 && c < 0x7f) ? c : '?';
    }
  }
  return out;
}

const char* anchor_name(Shape::Anchor anchor) {
  switch (anchor) {
    case Shape::Anchor::kStart: return "start";
    case Shape::Anchor::kMiddle: return "middle";
    case Shape::Anchor::kEnd: return "end";
  }
  return "start";
}

}  // namespace

std::string to_svg(const Picture& picture) {
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} "
      "{1:.0f}\" "
      "font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\">\n",
      picture.width, picture.height);
  for (const Shape& s : picture.shapes) {
    switch (s.kind) {
      case Shape::Kind::kRectangle:
        out += fmt::format(
            "<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" fill=\"#{:06x}\"/>\n", s.x,
            s.y, s.width, s.height, s.color);
        break;
      case Shape::Kind::kLine:
        out += fmt::format(
            "<line x1=\"{:.2f}\" y1=\"{:.2f}\" x2=\"{:.2f}\" y2=\"{:.2f}\" stroke=\"#{:06x}\" "
            "stroke-width=\"{:.2f}\"/>\n",
            s.x, s.y, s.x + s.width, s.y + s.height, s.color, s.size);
        break;
      case Shape::Kind::kText:
        out += fmt::format(
            "<text x=\"{:.2f}\" y=\"{:.2f}\" font-size=\"{:.0f}\" fill=\"#{:06x}\" "
            "text-anchor=\"{}\"{}>{}</text>\n",
            s.x, s.y, s.size, s.color, anchor_name(s.anchor), s.bold ? " font-weight=\"bold\"" : "",
            escaped(s.text));
        break;
    }
  }
  return out + "</svg>\n";
}

}  // namespace vmsieve
