// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/disks/merge_by_qemu_img.h"

#include <time.h>
#include <unistd.h>

#include "vmsieve/disks/image_file.h"
#include "vmsieve/disks/qemu_img.h"
#include "vmsieve/qemu/process.h"

namespace vmsieve::tidying {

namespace {

/// Did the process start before this moment (nanoseconds since 1970), and not just before it?
bool started_before(const QemuProcess& process, u64 moment) {
  constexpr u64 kSecond = 1'000'000'000;
  timespec wall{};
  timespec boot{};
  if (::clock_gettime(CLOCK_REALTIME, &wall) != 0 || ::clock_gettime(CLOCK_BOOTTIME, &boot) != 0)
    return false;
  const auto ns = [](const timespec& time) {
    return static_cast<u64>(time.tv_sec) * kSecond + static_cast<u64>(time.tv_nsec);
  };
  const u64 started = process.start_ticks * (kSecond / static_cast<u64>(::sysconf(_SC_CLK_TCK)));
  return ns(wall) - ns(boot) + started + kSecond < moment;
}

/// A QEMU that wrote to the overlay writes to the image now, and has closed the overlay: as libvirt's does
/// at the end of a merge.
bool has_left(const std::string& overlay, const std::string& image) {
  const std::vector<pid_t> users = users_of(image);
  if (users.size() != 1) return false;
  const auto qemu = read_qemu_process(users[0]);
  const auto in_use = is_held_for_writing(image);
  const auto print = print_of(overlay);
  return qemu.ok() && in_use.ok() && *in_use && print.ok() && started_before(*qemu, print->modified_ns);
}

}  // namespace

Result<void> merge_by_qemu_img(const Merge& merge, const std::string& image) {
  const bool leaving = contains(merge.record.leaving, merge.disk.overlay);
  if (leaving &&
      (merge.needs.was_passed_over(merge.disk.overlay, image) || has_left(merge.disk.overlay, image))) {
    VMSIEVE_TRY(mark_merged(merge));
    return remove_merged(merge);
  }
  const bool superseded = merge.needs.is_superseded(merge.disk.overlay);
  if (leaving && !superseded) {
    return waiting(fmt::format(
        "the VM ended in the moment in which it left it for {}: look which of them is the newer", image));
  }
  if (merge.needs.is_emptied(merge.disk.overlay)) return waiting("");
  if (const auto why = merge.needs.why_needed(image, merge.disk.overlay, -1)) {
    const bool abandoned = !superseded && merge.needs.all_over(merge.disk.overlay).empty();
    return waiting(abandoned
                       ? *why +
                             "; no process has it open: it holds what the VM wrote after the checkpoint, "
                             "and may be removed if nobody wants that"
                       : *why);
  }
  VMSIEVE_TRY(merge.needs.check_known_over(merge.disk.overlay));
  VMSIEVE_TRY(begin(merge, image));
  const std::vector<std::string> over =
      superseded ? merge.needs.all_over(merge.disk.overlay) : std::vector<std::string>{};
  for (const std::string& one : over) {
    if (const auto users = users_of(one); !users.empty())
      return waiting(fmt::format("process {} has {} open, which is over it", users.front(), one));
  }
  VMSIEVE_TRY(note_renamed(merge));
  if (!superseded) {
    VMSIEVE_TRY(run_qemu_img({"commit", "-q", "-f", "qcow2", merge.disk.overlay}));
    VMSIEVE_TRY(
        merge.needs.change(merge.record, [&](DiskRecord& now) { add(now.emptied, merge.disk.overlay); }));
    return waiting("");
  }
  // -d: it is the disk of others until they have the image.
  VMSIEVE_TRY(run_qemu_img({"commit", "-q", "-d", "-f", "qcow2", merge.disk.overlay}));
  for (const std::string& one : over)
    VMSIEVE_TRY(run_qemu_img({"rebase", "-u", "-f", "qcow2", "-F", merge.disk.format, "-b", image, one}));
  VMSIEVE_TRY(mark_merged(merge));
  return remove_merged(merge);
}

}  // namespace vmsieve::tidying
