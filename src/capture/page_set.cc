// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/page_set.h"

#include <algorithm>
#include <bit>

#include "vmsieve/base/result.h"

namespace vmsieve {

void PageSet::change(BlockPages run, bool present) {
  if (run.first_page >= pages_) return;
  const u64 end = run.pages > pages_ - run.first_page ? pages_ : run.first_page + run.pages;
  for (u64 page = run.first_page; page < end;) {
    const u64 bit = page % 64;
    const u64 count = std::min(u64{64} - bit, end - page);
    const u64 mask = (count == 64 ? ~u64{0} : (u64{1} << count) - 1) << bit;
    u64& word = words_[page / 64];
    word = present ? word | mask : word & ~mask;
    page += count;
  }
}

void PageSet::add(const PageSet& other) {
  VMSIEVE_CHECK(other.pages_ == pages_);
  for (std::size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
}

void PageSet::remove(const PageSet& other) {
  VMSIEVE_CHECK(other.pages_ == pages_);
  for (std::size_t i = 0; i < words_.size(); ++i) words_[i] &= ~other.words_[i];
}

u64 PageSet::count() const {
  u64 count = 0;
  for (const u64 word : words_) count += static_cast<u64>(std::popcount(word));
  return count;
}

u64 PageSet::find(u64 page, bool present) const {
  while (page < pages_) {
    const u64 word = (present ? words_[page / 64] : ~words_[page / 64]) >> (page % 64);
    if (word != 0) return std::min(pages_, page + static_cast<u64>(std::countr_zero(word)));
    page = (page / 64 + 1) * 64;
  }
  return pages_;
}

std::vector<BlockPages> PageSet::runs() const {
  std::vector<BlockPages> runs;
  for (u64 page = find(0, true); page < pages_;) {
    const u64 end = find(page, false);
    runs.push_back({page, end - page});
    page = find(end, true);
  }
  return runs;
}

}  // namespace vmsieve
