// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/disks/merge_by_qemu.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "vmsieve/base/clock.h"
#include "vmsieve/disks/disk_point.h"
#include "vmsieve/disks/image_file.h"
#include "vmsieve/disks/merge_by_qemu_img.h"
#include "vmsieve/qemu/pause_guard.h"
#include "vmsieve/qemu/qmp_wire.h"

namespace vmsieve::tidying {

namespace {

using Json = QmpClient::Json;
using std::chrono::milliseconds;

u64 number_of(const DiskRecord& record, const std::string& overlay) {
  const auto it = std::ranges::find(record.disks, overlay, &SavedDisk::overlay);
  return static_cast<u64>(it - record.disks.begin());
}

/// Empty: there is no such job.
Result<std::string> job_status(QmpClient& qmp, const std::string& job) {
  VMSIEVE_ASSIGN(const Json jobs, qmp.execute("query-jobs"));
  const auto it =
      std::find_if(jobs.begin(), jobs.end(), [&](const Json& one) { return json_string(one, "id") == job; });
  return it == jobs.end() ? "" : json_string(*it, "status");
}

/// The VM leaves the overlay for the image. It stands still meanwhile: in QEMU 7.2 a request that an IDE disk
/// makes in this moment ends QEMU (block/io.c, bdrv_co_write_req_prepare(): "Assertion `child->perm &
/// BLK_PERM_WRITE' failed").
Result<void> pivot(const Merge& merge, QmpClient& qmp, const std::string& job) {
  constexpr milliseconds kLongestSilence{10000};
  constexpr milliseconds kLongestPause{2000};
  VMSIEVE_ASSIGN(const auto guard, PauseGuard::make(qmp, kLongestSilence));
  const Heartbeat heartbeat(*guard);
  // ---- if QEMU dies between this and the next change, nobody knows which of the two is the disk ----
  VMSIEVE_TRY(
      merge.needs.change(merge.record, [&](DiskRecord& now) { add(now.leaving, merge.disk.overlay); }));
  // One in a state that cannot be stopped (suspended) writes nothing either.
  if (auto stopped = guard->stop(); !stopped && stopped.error().kind() != ErrorKind::kRefused) return stopped;
  VMSIEVE_TRY(qmp.execute("job-complete", Json{{"id", job}}, kCommandPatience));
  const Stopwatch pause;
  while (pause.ms() < kLongestPause.count()) {
    VMSIEVE_ASSIGN(const std::string status, job_status(qmp, job));
    if (status.empty() || status == "concluded") break;
    std::this_thread::sleep_for(milliseconds{1});
  }
  return guard->resume();
}

/// Makes what is in the image's node durable. Before QEMU writes into what is over the overlay that the image
/// is under it now: its commit does not see to that by itself (block/commit.c, commit_prepare()), and what it
/// has in its own memory of a qcow2 image's tables would be lost with it.
Result<void> flush(const std::string& image, const std::string& working_directory, QmpClient& qmp) {
  VMSIEVE_ASSIGN(const VmChains chains, VmChains::read(qmp, working_directory));
  const BlockNode* const node = chains.image(image);
  if (node == nullptr) return waiting(fmt::format("QEMU has no block node for {}, or several", image));
  VMSIEVE_ASSIGN(const std::string words, qmp.human(fmt::format("qemu-io {} flush", node->name)));
  if (words.find_first_not_of(" \r\n") == std::string::npos) return {};
  return waiting(fmt::format("{} cannot be made durable: {}", image, words));
}

/// Until a commit has come to its end, also one of somebody who was killed in the midst of it.
Result<void> complete(const Merge& merge, const std::string& image, const Holder& holder,
                      const std::string& job) {
  QmpClient& qmp = *holder.qmp;
  for (milliseconds pause{1};; pause = std::min(2 * pause, milliseconds{50})) {
    VMSIEVE_ASSIGN(const Json jobs, qmp.execute("query-jobs"));
    const auto it = std::find_if(jobs.begin(), jobs.end(),
                                 [&](const Json& one) { return json_string(one, "id") == job; });
    const std::string status = it == jobs.end() ? "" : json_string(*it, "status");
    if (status == "ready") {
      VMSIEVE_TRY(pivot(merge, qmp, job));
      return wait_for_job(qmp, job, merge.progress);
    }
    if (status == "pending") {
      if (auto flushed = flush(image, holder.vm.process.working_directory, qmp); !flushed) {
        (void)qmp.execute("job-cancel", Json{{"id", job}}, kCommandPatience);
        (void)wait_for_job(qmp, job);
        return flushed;
      }
      VMSIEVE_TRY(qmp.execute("job-finalize", Json{{"id", job}}, kCommandPatience));
      return wait_for_job(qmp, job, merge.progress);
    }
    if (status.empty() || status == "concluded" || status == "aborting")
      return wait_for_job(qmp, job, merge.progress);
    if (merge.progress)
      merge.progress({"merging", json_u64(*it, "current-progress").value_or(0),
                      json_u64(*it, "total-progress").value_or(0)});
    std::this_thread::sleep_for(pause);
  }
}

/// Of somebody who was killed in the midst of it. What has come of it is seen by the chain.
Result<void> end_old_job(const Merge& merge, const std::string& image, const Holder& holder,
                         const std::string& job) {
  VMSIEVE_ASSIGN(const Json jobs, holder.qmp->execute("query-jobs"));
  for (const Json& one : jobs) {
    if (json_string(one, "id") != job) continue;
    if (json_string(one, "type") == "commit") {
      (void)complete(merge, image, holder, job);
    } else {
      (void)wait_for_job(*holder.qmp, job, merge.progress);
    }
  }
  return {};
}

/// The overlay is in no disk of the VM whose QEMU has it open.
Result<void> take_leave(const Merge& merge, const std::string& image, const VmChains& chains,
                        QmpClient& qmp) {
  // What is not known may be over it.
  if (!chains.unknown().empty()) return waiting(chains.unknown());
  // A disk without either of them has copied what it needed (flatten_disks()).
  const bool is_merged =
      contains(merge.record.leaving, merge.disk.overlay) && chains.top_over(image).has_value();
  if (is_merged) VMSIEVE_TRY(mark_merged(merge));
  close_nodes(chains, merge.disk.overlay, qmp);
  if (is_merged) return remove_merged(merge);
  if (const auto users = users_of(merge.disk.overlay); !users.empty())
    return waiting(fmt::format("process {} has it open", users.front()));
  const auto empty = is_empty_image(merge.disk.overlay);
  const bool never_was = empty.ok() && *empty && !merge.needs.is_superseded(merge.disk.overlay) &&
                         merge.needs.all_over(merge.disk.overlay).empty();
  if (!never_was) return merge_by_qemu_img(merge, image);
  // It was made for an instant that never came.
  (void)::unlink(merge.disk.overlay.c_str());
  return {};
}

}  // namespace

void close_nodes(const VmChains& chains, const std::string& overlay, QmpClient& qmp) {
  const BlockNode* const node = chains.image(overlay);
  for (const std::string& name : {node != nullptr ? node->name : "", chains.file_node(overlay)}) {
    if (!name.empty()) (void)qmp.execute("blockdev-del", Json{{"node-name", name}}, kCommandPatience);
  }
}

Result<void> merge_by_qemu(const Merge& merge, const std::string& image, Holder& holder) {
  QmpClient& qmp = *holder.qmp;
  const std::string job = overlay_node(merge.record.checkpoint, number_of(merge.record, merge.disk.overlay));
  VMSIEVE_TRY(end_old_job(merge, image, holder, job));
  VMSIEVE_ASSIGN(const VmChains chains, VmChains::read(qmp, holder.vm.process.working_directory));
  const BlockNode* const over = chains.image(merge.disk.overlay);
  if (over == nullptr) return waiting("QEMU has no block node for it, or several");
  const auto top = chains.top_over(merge.disk.overlay);
  if (!top) return take_leave(merge, image, chains, qmp);
  const BlockNode* const under = chains.image(image);
  if (under == nullptr) return waiting(fmt::format("QEMU has no block node for {}, or several", image));
  if (const auto why = merge.needs.why_needed(image, merge.disk.overlay, holder.vm.process.pid))
    return waiting(*why);
  VMSIEVE_TRY(merge.needs.check_known_over(merge.disk.overlay, chains.over(merge.disk.overlay)));
  VMSIEVE_TRY(begin(merge, image));
  const bool active = *top == over->name;
  if (active)
    VMSIEVE_TRY(merge.needs.change(merge.record,
                                   [&](DiskRecord& now) { take_out(now.leaving, merge.disk.overlay); }));
  Json arguments{{"job-id", job}, {"device", *top}, {"base-node", under->name}, {"auto-dismiss", false}};
  if (!active) {
    arguments["auto-finalize"] = false;  // flush() comes before
    VMSIEVE_TRY(note_renamed(merge));
    VMSIEVE_TRY(
        merge.needs.change(merge.record, [&](DiskRecord& now) { add(now.leaving, merge.disk.overlay); }));
    arguments["top-node"] = over->name;
    // Else QEMU may write a name that only it understands ("json:...") into the header above.
    arguments["backing-file"] = image;
  }
  VMSIEVE_TRY(begin_commit(qmp, "block-commit", arguments));
  VMSIEVE_TRY(complete(merge, image, holder, job));
  VMSIEVE_ASSIGN(const VmChains after, VmChains::read(qmp, holder.vm.process.working_directory));
  if (after.top_over(merge.disk.overlay)) return waiting("QEMU still has it in the chain of a disk");
  return take_leave(merge, image, after, qmp);
}

Result<void> close_merged(const Merge& merge) {
  const std::vector<pid_t> users = users_of(merge.disk.overlay);
  if (users.size() != 1) return {};
  VMSIEVE_ASSIGN(Holder holder, hold(users[0], merge.needs));
  if (holder.vm.libvirt) return {};  // libvirt does it by itself
  VMSIEVE_ASSIGN(const auto image, backing_of(merge.disk.overlay));
  if (image) {
    VMSIEVE_TRY(
        end_old_job(merge, *image, holder,
                    overlay_node(merge.record.checkpoint, number_of(merge.record, merge.disk.overlay))));
  }
  VMSIEVE_ASSIGN(const VmChains chains, VmChains::read(*holder.qmp, holder.vm.process.working_directory));
  if (chains.unknown().empty() && !chains.top_over(merge.disk.overlay))
    close_nodes(chains, merge.disk.overlay, *holder.qmp);
  return {};
}

}  // namespace vmsieve::tidying
