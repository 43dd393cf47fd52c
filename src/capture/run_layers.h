// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <vector>

#include "vmsieve/image/memory_index.h"

namespace vmsieve {

/// Sorts runs of pages by their first page. They must not overlap.
void sort_runs(std::vector<PageRun>& runs);

/// The runs of `below` wherever `above` says nothing, those of `above` elsewhere: a run that is covered in
/// part is cut, and page_in_frame follows. Both ascending and without overlaps; so is the result.
std::vector<PageRun> lay_over(std::span<const PageRun> below, std::span<const PageRun> above);

/// Joins neighbours that say the same: equal fills, data that adjoins in the same frame.
std::vector<PageRun> joined(std::span<const PageRun> runs);

}  // namespace vmsieve
