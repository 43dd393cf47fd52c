// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/picture/memory_map.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace vmsieve {
namespace {

constexpr double kMargin = 24;
constexpr double kCell = 7;
constexpr u64 kColumns = 128;
constexpr u64 kMaxRows = 96;
constexpr double kMapLeft = kMargin + 64;  // addresses stand to the left
constexpr double kMapWidth = kCell * static_cast<double>(kColumns);
constexpr double kZoneColumn = kMapLeft + kMapWidth + 8;
constexpr double kWidth = kZoneColumn + 150 + kMargin;
constexpr double kBarTop = 84;
constexpr double kBarHeight = 26;
constexpr double kMapTop = kBarTop + kBarHeight + 48;
constexpr double kRangeGap = 10;
constexpr double kLegendRow = 20;
constexpr u64 kLegendColumns = 3;

constexpr u32 kInk = 0x1f2933;
constexpr u32 kFaint = 0x6b7785;
constexpr u32 kBorder = 0x000000;

struct Style {
  PageClass page_class;
  u32 color;
  const char* name;
};

// In the order of the bar and the legend. Colours in families: processes blue and violet, files green,
// the kernel red to yellow, nobody's grey; neighbours in the list differ in lightness too.
constexpr std::array<Style, kPageClasses> kStyles{{
    {PageClass::kAnonymous, 0x2563a8, "anonymous (processes)"},
    {PageClass::kShared, 0x7c5cc4, "shared memory, tmpfs"},
    {PageClass::kHugetlb, 0x64b5e8, "huge pages in use"},
    {PageClass::kCacheClean, 0x7cc576, "page cache, clean"},
    {PageClass::kCacheDirty, 0x2e7d4f, "page cache, dirty"},
    {PageClass::kSlab, 0xc0392b, "slab (kernel objects)"},
    {PageClass::kPageTables, 0xf08a5d, "page tables"},
    {PageClass::kKernelStacks, 0xa85d1b, "kernel stacks"},
    {PageClass::kVmalloc, 0xf6b93b, "vmalloc, modules"},
    {PageClass::kKernelImage, 0x6d1a36, "kernel text and data"},
    {PageClass::kPageStructs, 0xd9799f, "page structures"},
    {PageClass::kReserved, 0x8c7a6b, "reserved at boot"},
    {PageClass::kKernelOther, 0xe3c9a8, "other kernel memory"},
    {PageClass::kUnmanaged, 0x4a4a4a, "not the kernel's"},
    {PageClass::kOffline, 0x9fb3c8, "balloon, unplugged"},
    {PageClass::kUnused, 0xcfd8e3, "unused, not proved free"},
    {PageClass::kFree, 0xeef2f6, "free"},
}};

u32 color_of(PageClass c) {
  for (const Style& style : kStyles) {
    if (style.page_class == c) return style.color;
  }
  return kInk;
}

std::string bytes_text(u64 pages) {
  const double mib = static_cast<double>(pages) * 4096 / (1024 * 1024);
  if (mib >= 1024) return fmt::format("{:.2f} GiB", mib / 1024);
  return mib >= 1 ? fmt::format("{:.1f} MiB", mib) : fmt::format("{:.0f} KiB", mib * 1024);
}

Shape rectangle(double x, double y, double width, double height, u32 color) {
  return {.kind = Shape::Kind::kRectangle,
          .x = x,
          .y = y,
          .width = width,
          .height = height,
          .color = color,
          .size = 0,
          .bold = false,
          .anchor = Shape::Anchor::kStart,
          .text = {}};
}

Shape line(double x, double y, double dx, double dy, double width) {
  return {.kind = Shape::Kind::kLine,
          .x = x,
          .y = y,
          .width = dx,
          .height = dy,
          .color = kBorder,
          .size = width,
          .bold = false,
          .anchor = Shape::Anchor::kStart,
          .text = {}};
}

Shape text(double x, double y, double size, u32 color, std::string words, bool bold = false,
           Shape::Anchor anchor = Shape::Anchor::kStart) {
  return {.kind = Shape::Kind::kText,
          .x = x,
          .y = y,
          .width = 0,
          .height = 0,
          .color = color,
          .size = size,
          .bold = bold,
          .anchor = anchor,
          .text = std::move(words)};
}

class Drawing {
 public:
  explicit Drawing(const Inspection& inspection) : inspection_(inspection), classes_(*inspection.classes) {
    for (const u64 pages : classes_.pages) total_ += pages;
    for (const PageClassRun& run : classes_.runs) {
      if (ranges_.empty() || ranges_.back().end() != run.first.value) ranges_.push_back({run.first, 0});
      ranges_.back().count += run.count;
    }
    // As few pages a cell as leave the map within its rows; a power of two, so that addresses are round.
    while (rows() > kMaxRows) cell_pages_ *= 2;
  }

  Picture draw() && {
    add(rectangle(0, 0, kWidth, 0, 0xffffff));  // its height is set last
    title();
    bar();
    double y = kMapTop;
    add(text(kMapLeft, y - 10, 12, kFaint,
             fmt::format("guest-physical memory, one cell is {}", bytes_text(cell_pages_))));
    for (const PfnRange& range : ranges_) y = map(range, y) + kRangeGap;
    y = legend(y + 24);
    picture_.width = kWidth;
    picture_.height = y + kMargin;
    picture_.shapes.front().height = picture_.height;
    return std::move(picture_);
  }

 private:
  void add(Shape shape) { picture_.shapes.push_back(std::move(shape)); }
  u64 rows() const {
    u64 rows = 0;
    for (const PfnRange& range : ranges_) rows += rows_of(range);
    return rows;
  }
  u64 cells_of(const PfnRange& range) const { return (range.count + cell_pages_ - 1) / cell_pages_; }
  u64 rows_of(const PfnRange& range) const { return (cells_of(range) + kColumns - 1) / kColumns; }
  double share(u64 pages) const {
    return total_ == 0 ? 0 : static_cast<double>(pages) / static_cast<double>(total_);
  }

  void title() {
    const std::string name = inspection_.vm_name.empty() ? "unnamed VM" : inspection_.vm_name;
    add(text(kMargin, 40, 22, kInk, "Memory of " + name, true));
    add(text(
        kMargin, 62, 13, kFaint,
        fmt::format("Linux {}, {} of RAM, {} free ({:.1f} %)", inspection_.kernel, bytes_text(total_),
                    bytes_text(classes_.of(PageClass::kFree)), 100 * share(classes_.of(PageClass::kFree)))));
  }

  void bar() {
    double x = kMapLeft;
    for (const Style& style : kStyles) {
      const double width = kMapWidth * share(classes_.of(style.page_class));
      if (width <= 0) continue;
      add(rectangle(x, kBarTop, width, kBarHeight, style.color));
      x += width;
    }
    for (const auto& [dx, dy, px, py] : {std::array<double, 4>{kMapWidth, 0, 0, 0},
                                         {kMapWidth, 0, 0, kBarHeight},
                                         {0, kBarHeight, 0, 0},
                                         {0, kBarHeight, kMapWidth, 0}}) {
      add(line(kMapLeft + px, kBarTop + py, dx, dy, 1));
    }
  }

  // The class that most pages of a cell have.
  PageClass cell_class(std::size_t& run, u64 first, u64 end) const {
    std::array<u64, kPageClasses> counts{};
    for (std::size_t r = run; r < classes_.runs.size() && classes_.runs[r].first.value < end; ++r) {
      const PageClassRun& at = classes_.runs[r];
      const u64 from = std::max(first, at.first.value);
      const u64 to = std::min(end, at.first.value + at.count);
      if (from < to) counts[static_cast<std::size_t>(at.page_class)] += to - from;
      run = at.first.value + at.count <= end ? r + 1 : r;
    }
    return static_cast<PageClass>(std::max_element(counts.begin(), counts.end()) - counts.begin());
  }

  // One contiguous range; returns where it ends.
  double map(const PfnRange& range, double top) {
    auto run =
        static_cast<std::size_t>(std::partition_point(classes_.runs.begin(), classes_.runs.end(),
                                                      [&](const PageClassRun& r) {
                                                        return r.first.value + r.count <= range.first.value;
                                                      }) -
                                 classes_.runs.begin());
    const u64 cells = cells_of(range);
    for (u64 cell = 0; cell < cells;) {
      // Neighbours of one colour are one rectangle.
      const u64 row_end = std::min(cells, (cell / kColumns + 1) * kColumns);
      const u64 begin = cell;
      const PageClass c = cell_class(run, pfn_of(range, cell), pfn_of(range, cell + 1));
      ++cell;
      while (cell < row_end) {
        std::size_t next = run;
        if (cell_class(next, pfn_of(range, cell), pfn_of(range, cell + 1)) != c) break;
        run = next;
        ++cell;
      }
      add(rectangle(x_of(begin), y_of(top, begin), kCell * static_cast<double>(cell - begin), kCell,
                    color_of(c)));
    }
    const u64 row_count = rows_of(range);
    for (u64 row = 0; row < row_count; row += 8) {
      const u64 address = (range.first.value + row * kColumns * cell_pages_) << kPageShift;
      add(text(kMapLeft - 6, top + kCell * static_cast<double>(row) + kCell, 10, kFaint,
               address_text(address), false, Shape::Anchor::kEnd));
    }
    zones(range, top);
    return top + kCell * static_cast<double>(row_count);
  }

  void zones(const PfnRange& range, double top) {
    double label_y = 0;
    for (const ZoneSpan& zone : classes_.zones) {
      const u64 first = std::max(zone.span.first.value, range.first.value);
      if (first >= std::min(zone.span.end(), range.end())) continue;
      const u64 cell = (first - range.first.value) / cell_pages_;
      border(cell, cells_of(range), top);
      // A name where the zone begins, lower when the one before is too near.
      const double y = std::max(y_of(top, cell) + 9, label_y);
      add(text(kZoneColumn, y, 11, kInk, zone.name));
      label_y = y + 13;
    }
  }

  // The line that divides the cells before `cell` from the others, in reading order.
  void border(u64 cell, u64 cells, double top) {
    const u64 column = cell % kColumns;
    const double y = y_of(top, cell);
    const u64 row_end = std::min(cells, cell - column + kColumns);
    add(line(x_of(cell), y, kCell * static_cast<double>(row_end - cell), 0, 1.6));
    if (column == 0) return;
    add(line(x_of(cell), y, 0, kCell, 1.6));
    add(line(kMapLeft, y + kCell, kCell * static_cast<double>(column), 0, 1.6));
  }

  double legend(double y) {
    u64 at = 0;
    const double column = (kWidth - 2 * kMargin) / static_cast<double>(kLegendColumns);
    for (const Style& style : kStyles) {
      const u64 pages = classes_.of(style.page_class);
      if (pages == 0) continue;
      const double x = kMargin + column * static_cast<double>(at % kLegendColumns);
      const double row = y + kLegendRow * row_of(at, kLegendColumns);
      add(rectangle(x, row, 13, 13, kInk));
      add(rectangle(x + 0.7, row + 0.7, 11.6, 11.6, style.color));
      add(text(x + 20, row + 11, 12, kInk, style.name));
      add(text(x + column - 24, row + 11, 12, kFaint,
               fmt::format("{}, {:.1f} %", bytes_text(pages), 100 * share(pages)), false,
               Shape::Anchor::kEnd));
      ++at;
    }
    return y + kLegendRow * std::ceil(static_cast<double>(at) / static_cast<double>(kLegendColumns));
  }

  u64 pfn_of(const PfnRange& range, u64 cell) const {
    return std::min(range.end(), range.first.value + cell * cell_pages_);
  }
  static double row_of(u64 at, u64 columns) {
    const u64 row = at / columns;
    return static_cast<double>(row);
  }
  static double x_of(u64 cell) { return kMapLeft + kCell * static_cast<double>(cell % kColumns); }
  static double y_of(double top, u64 cell) { return top + kCell * row_of(cell, kColumns); }
  static std::string address_text(u64 address) {
    if (address < kGiB) return fmt::format("{} MiB", address / kMiB);
    return fmt::format("{:.2f} GiB", static_cast<double>(address) / static_cast<double>(kGiB));
  }

  const Inspection& inspection_;
  const PageClasses& classes_;
  std::vector<PfnRange> ranges_;
  u64 total_ = 0;
  u64 cell_pages_ = 1;
  Picture picture_;
};

}  // namespace

Result<Picture> draw_memory_map(const Inspection& inspection) {
  if (!inspection.classes) {
    return make_error(ErrorKind::kUnsupported, "there is nothing to draw: {}",
                      inspection.no_classes.empty() ? inspection.reason : inspection.no_classes);
  }
  return Drawing(inspection).draw();
}

}  // namespace vmsieve
