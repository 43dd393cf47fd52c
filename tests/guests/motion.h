// SPDX-License-Identifier: Apache-2.0
// Memory in motion: what keeps the guest kernel's allocator at work.
#pragma once

// Fills `mib` MiB with data that no compressor shrinks, all of it at one time,
// and frees it again: what a guest that has run for long looks like from outside.
// Returns when the memory has come back to the kernel's free lists.
void churn(long mib, int processes);

// One short step of allocating, checking and freeing. Call it again and again.
void motion_step(void);
