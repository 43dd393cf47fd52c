// SPDX-License-Identifier: Apache-2.0
#include <cairo.h>
#include <cmath>
#include <memory>

#include "vmsieve/picture/memory_map.h"

namespace vmsieve {
namespace {

// Twice the size, so that small text can be read on any screen.
constexpr double kScale = 2;

void set_color(cairo_t* cairo, u32 color) {
  const auto part = [&](u32 shift) { return ((color >> shift) & 0xff) / 255.0; };
  cairo_set_source_rgb(cairo, part(16), part(8), part(0));
}

void draw_text(cairo_t* cairo, const Shape& shape) {
  cairo_select_font_face(cairo, "sans-serif", CAIRO_FONT_SLANT_NORMAL,
                         shape.bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
  cairo_set_font_size(cairo, shape.size);
  std::string text;
  for (const char c : shape.text) text += (c >= 0x20 && c < 0x7f) ? c : '?';
  cairo_text_extents_t extents;
  cairo_text_extents(cairo, text.c_str(), &extents);
  double x = shape.x;
  if (shape.anchor == Shape::Anchor::kMiddle) x -= extents.x_advance / 2;
  if (shape.anchor == Shape::Anchor::kEnd) x -= extents.x_advance;
  cairo_move_to(cairo, x, shape.y);
  cairo_show_text(cairo, text.c_str());
}

void draw(cairo_t* cairo, const Shape& shape) {
  set_color(cairo, shape.color);
  switch (shape.kind) {
    case Shape::Kind::kRectangle:
      cairo_rectangle(cairo, shape.x, shape.y, shape.width, shape.height);
      cairo_fill(cairo);
      break;
    case Shape::Kind::kLine:
      cairo_set_line_width(cairo, shape.size);
      cairo_move_to(cairo, shape.x, shape.y);
      cairo_line_to(cairo, shape.x + shape.width, shape.y + shape.height);
      cairo_stroke(cairo);
      break;
    case Shape::Kind::kText: draw_text(cairo, shape); break;
  }
}

cairo_status_t append(void* bytes, const unsigned char* data, unsigned length) {
  static_cast<std::string*>(bytes)->append(data, data + length);
  return CAIRO_STATUS_SUCCESS;
}

}  // namespace

Result<std::string> to_png(const Picture& picture) {
  const std::unique_ptr<cairo_surface_t, decltype(&cairo_surface_destroy)> surface(
      cairo_image_surface_create(CAIRO_FORMAT_RGB24, static_cast<int>(std::ceil(picture.width * kScale)),
                                 static_cast<int>(std::ceil(picture.height * kScale))),
      cairo_surface_destroy);
  const std::unique_ptr<cairo_t, decltype(&cairo_destroy)> cairo(cairo_create(surface.get()), cairo_destroy);
  cairo_scale(cairo.get(), kScale, kScale);
  for (const Shape& shape : picture.shapes) draw(cairo.get(), shape);
  auto status = cairo_status(cairo.get());
  std::string bytes;
  if (status == CAIRO_STATUS_SUCCESS) {
    status = cairo_surface_write_to_png_stream(surface.get(), append, &bytes);
  }
  if (status != CAIRO_STATUS_SUCCESS)
    return make_error(ErrorKind::kIo, "drawing the picture: {}", cairo_status_to_string(status));
  return bytes;
}

}  // namespace vmsieve
