// SPDX-License-Identifier: Apache-2.0
// What the guest kernel itself says and keeps: processes, files, counters, log.
#pragma once

#include <sys/types.h>

// Notes what must stay as it is, and makes the files and counters to watch.
void kernel_view_set_up(void);

// Checks the next part of it; everything within four calls.
void kernel_view_visit(void);

// Checks that `pid` is a living child of this process.
void kernel_view_check_child(pid_t pid);

// Checks the kernel log and the taint flags for signs of corruption. A lost tick,
// a jumped clock or a stall is no corruption: a restored guest may see those.
void kernel_log_check(void);
