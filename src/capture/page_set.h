// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "vmsieve/base/units.h"
#include "vmsieve/capture/page_plan.h"

namespace vmsieve {

/// A set of pages of one block, by their indices: a bit each, 32 KiB for a GiB.
class PageSet {
 public:
  explicit PageSet(u64 pages) : pages_(pages), words_((pages + 63) / 64) {}

  u64 size() const { return pages_; }
  bool has(u64 page) const { return page < pages_ && ((words_[page / 64] >> (page % 64)) & 1) != 0; }
  /// What lies behind size() is left out.
  void add(BlockPages run) { change(run, true); }
  void remove(BlockPages run) { change(run, false); }
  /// The other set must be of the same size.
  void add(const PageSet& other);
  void remove(const PageSet& other);

  u64 count() const;
  /// Ascending, not adjoining.
  std::vector<BlockPages> runs() const;

 private:
  void change(BlockPages run, bool present);
  /// The first page from `page` on that is (not) in the set; size() when there is none.
  u64 find(u64 page, bool present) const;

  u64 pages_;
  std::vector<u64> words_;
};

}  // namespace vmsieve
