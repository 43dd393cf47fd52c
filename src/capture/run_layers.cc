// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/run_layers.h"

#include <algorithm>

namespace vmsieve {

namespace {

u64 end_of(const PageRun& run) { return run.first_page + run.pages; }

/// The pages of `run` in [first, end).
PageRun part(const PageRun& run, u64 first, u64 end) {
  PageRun cut = run;
  cut.first_page = first;
  cut.pages = end - first;
  if (run.kind == RunKind::kData) cut.page_in_frame += first - run.first_page;
  return cut;
}

}  // namespace

void sort_runs(std::vector<PageRun>& runs) {
  std::sort(runs.begin(), runs.end(),
            [](const PageRun& a, const PageRun& b) { return a.first_page < b.first_page; });
}

std::vector<PageRun> lay_over(std::span<const PageRun> below, std::span<const PageRun> above) {
  std::vector<PageRun> result;
  result.reserve(below.size() + above.size());
  auto next = above.begin();
  for (const PageRun& run : below) {
    u64 at = run.first_page;
    while (next != above.end() && next->first_page < end_of(run)) {
      if (next->first_page > at) result.push_back(part(run, at, next->first_page));
      at = std::max(at, end_of(*next));
      if (end_of(*next) > end_of(run)) break;  // it covers the beginning of the next run too
      result.push_back(*next++);
    }
    if (at < end_of(run)) result.push_back(part(run, at, end_of(run)));
  }
  result.insert(result.end(), next, above.end());
  return result;
}

std::vector<PageRun> joined(std::span<const PageRun> runs) {
  std::vector<PageRun> result;
  for (const PageRun& run : runs) {
    PageRun* const last = result.empty() ? nullptr : &result.back();
    const bool adjoins = last != nullptr && end_of(*last) == run.first_page && last->kind == run.kind;
    const bool same =
        adjoins && (run.kind == RunKind::kData
                        ? last->frame == run.frame && last->page_in_frame + last->pages == run.page_in_frame
                        : last->fill == run.fill);
    if (same) {
      last->pages += run.pages;
    } else {
      result.push_back(run);
    }
  }
  return result;
}

}  // namespace vmsieve
