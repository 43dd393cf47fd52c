// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/disks/merge_by_libvirt.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "vmsieve/disks/image_file.h"
#include "vmsieve/disks/merge_by_qemu_img.h"
#include "vmsieve/disks/vm_chain.h"
#include "vmsieve/qemu/qmp_wire.h"

namespace vmsieve::tidying {

namespace {

using Json = QmpClient::Json;
using std::chrono::milliseconds;

/// What libvirt says of the disk in whose chain a file is.
struct LibvirtDisk {
  std::string target;       ///< libvirt's name of it; empty: the file is in none
  std::string file, under;  ///< the file and its backing file, as libvirt calls them
  bool active = false;      ///< the domain writes to the file
  std::string job;          ///< "commit", "active-commit", "another"; empty: none
  std::string mirror;       ///< where the job copies it to
  bool ready = false;       ///< both hold the same
  u64 done = 0, total = 0;
};

Result<LibvirtDisk> libvirt_disk_with(QmpClient& qmp, const std::string& file) {
  VMSIEVE_ASSIGN(const Json state, qmp.execute("vmsieve-disk-state", Json{{"file", file}}, kCommandPatience));
  return LibvirtDisk{.target = json_string(state, "target"),
                     .file = json_string(state, "file"),
                     .under = json_string(state, "under"),
                     .active = json_true(state, "active"),
                     .job = json_string(state, "job"),
                     .mirror = json_string(state, "mirror"),
                     .ready = json_true(state, "ready"),
                     .done = json_u64(state, "done").value_or(0),
                     .total = json_u64(state, "total").value_or(0)};
}

/// Waits for a commit of the overlay, also one of somebody who was killed; an active one is completed as by
/// pivot().
Result<void> end_libvirts_job(const Merge& merge, const std::string& image, QmpClient& qmp) {
  for (milliseconds pause{1};; pause = std::min(2 * pause, milliseconds{50})) {
    VMSIEVE_ASSIGN(const LibvirtDisk now, libvirt_disk_with(qmp, merge.disk.overlay));
    const bool active = now.job == "active-commit" && now.active && same_file(now.mirror, image);
    if (!active && now.job != "commit") return {};
    if (active && now.ready) {
      // ---- if QEMU dies between this and the next change, nobody knows which of the two is the disk ----
      VMSIEVE_TRY(merge.needs.change(merge.record,
                                     [&](DiskRecord& noted) { add(noted.leaving, merge.disk.overlay); }));
      VMSIEVE_TRY(qmp.execute("vmsieve-disk-pivot", Json{{"target", now.target}}, kCommandPatience));
      return {};
    }
    if (merge.progress) merge.progress({"merging", now.done, now.total});
    std::this_thread::sleep_for(pause);
  }
}

/// The overlay is in no disk of the domain.
Result<void> leave_by_libvirt(const Merge& merge, const std::string& image, QmpClient& qmp) {
  VMSIEVE_ASSIGN(const LibvirtDisk under, libvirt_disk_with(qmp, image));
  (void)qmp.execute("vmsieve-disk-forget-chains", Json::object(), kCommandPatience);
  const bool is_merged = contains(merge.record.leaving, merge.disk.overlay) && !under.target.empty();
  if (is_merged) VMSIEVE_TRY(mark_merged(merge));
  // libvirt closes it when it has said that all is done.
  for (int attempt = 1; attempt < kAttempts && !users_of(merge.disk.overlay).empty(); ++attempt)
    std::this_thread::sleep_for(kBetweenAttempts);
  if (is_merged) return remove_merged(merge);
  if (const auto users = users_of(merge.disk.overlay); !users.empty())
    return waiting(fmt::format("process {} has it open", users.front()));
  return merge_by_qemu_img(merge, image);
}

}  // namespace

Result<void> merge_by_libvirt(const Merge& merge, const std::string& image, Holder& holder) {
  QmpClient& qmp = *holder.qmp;
  VMSIEVE_TRY(end_libvirts_job(merge, image, qmp));
  VMSIEVE_ASSIGN(const LibvirtDisk over, libvirt_disk_with(qmp, merge.disk.overlay));
  if (over.target.empty()) return leave_by_libvirt(merge, image, qmp);
  if (!over.job.empty()) return waiting(fmt::format("libvirt has a job on the disk {}", over.target));
  if (!same_file(over.under, image))
    return waiting(fmt::format("libvirt does not know that {} is under it", image));
  if (const auto why = merge.needs.why_needed(image, merge.disk.overlay, holder.vm.process.pid))
    return waiting(*why);
  VMSIEVE_ASSIGN(const VmChains chains, VmChains::read(qmp, holder.vm.process.working_directory));
  VMSIEVE_TRY(merge.needs.check_known_over(merge.disk.overlay, chains.over(merge.disk.overlay)));
  VMSIEVE_TRY(begin(merge, image));
  if (!over.active) {
    VMSIEVE_TRY(note_renamed(merge));
    VMSIEVE_TRY(
        merge.needs.change(merge.record, [&](DiskRecord& now) { add(now.leaving, merge.disk.overlay); }));
  }
  VMSIEVE_TRY(begin_commit(
      qmp, "vmsieve-disk-commit",
      Json{{"target", over.target}, {"file", over.file}, {"under", over.under}, {"active", over.active}}));
  VMSIEVE_TRY(end_libvirts_job(merge, image, qmp));
  VMSIEVE_ASSIGN(const LibvirtDisk after, libvirt_disk_with(qmp, merge.disk.overlay));
  if (!after.target.empty()) return waiting("libvirt still has it in the chain of a disk");
  return leave_by_libvirt(merge, image, qmp);
}

}  // namespace vmsieve::tidying
