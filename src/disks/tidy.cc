// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/disks/tidy.h"

#include <unistd.h>

#include <algorithm>

#include "vmsieve/disks/disk_needs.h"
#include "vmsieve/disks/disk_point.h"
#include "vmsieve/disks/holder.h"
#include "vmsieve/disks/image_file.h"
#include "vmsieve/disks/merge.h"
#include "vmsieve/disks/merge_by_libvirt.h"
#include "vmsieve/disks/merge_by_qemu.h"
#include "vmsieve/disks/merge_by_qemu_img.h"
#include "vmsieve/disks/qemu_img.h"
#include "vmsieve/disks/vm_chain.h"
#include "vmsieve/qemu/qmp_wire.h"
#include "vmsieve/qemu/rbd_image.h"

namespace vmsieve {

namespace {

using namespace tidying;
using Json = QmpClient::Json;

class Tidy {
 public:
  Tidy(Store& store, const ProgressFunction& progress) : store_(store), needs_(store), progress_(progress) {}

  Result<Tidied> run() {
    VMSIEVE_ASSIGN(Store::DiskRecords ids, store_.disk_records());
    if (ids.forsaken.empty()) return Tidied{};
    VMSIEVE_ASSIGN(const auto lock, store_.lock_disks());
    VMSIEVE_ASSIGN(ids, store_.disk_records());  // as the one before has left them
    needs_.read(ids);
    if (!needs_.unreadable().empty()) return Tidied{{}, needs_.unreadable()};  // who needs what is not known
    // What one waits for may be another.
    for (bool go_on = true; go_on && !needs_.forsaken().empty();) {
      untidy_.clear();
      removed_abandoned_ = false;
      std::vector<std::string> done;
      for (DiskRecord& record : needs_.forsaken()) {
        if (!tidy(record)) continue;
        VMSIEVE_TRY(store_.forget_disks(record.checkpoint));
        done.push_back(record.checkpoint);
      }
      std::erase_if(needs_.forsaken(), [&](const DiskRecord& record) {
        return std::ranges::find(done, record.checkpoint) != done.end();
      });
      go_on = !done.empty() || removed_abandoned_;
    }
    std::vector<UntidyDisk> untidy = needs_.unreadable();
    untidy.insert(untidy.end(), untidy_.begin(), untidy_.end());
    return Tidied{std::move(tidied_), std::move(untidy)};
  }

 private:
  /// True when nothing of it is left to do.
  bool tidy(DiskRecord& record) {
    bool done = remove_abandoned(record);
    const std::vector<SavedDisk> disks = record.disks;
    for (u64 number = 0; number < disks.size(); ++number) {
      const SavedDisk& disk = disks[number];
      const auto finished = [&]() -> Result<void> {
        switch (record.way) {
          case DiskWay::kSnapshot: return tidy_and_tell(record, disk);
          case DiskWay::kInternal: return remove_snapshot(record, disk);
          case DiskWay::kCopy: break;
        }
        return end_copy(record, disk, number);
      }();
      if (finished) continue;
      done = false;
      if (finished.error().message().empty()) continue;  // as it is to be
      std::string file = record.way == DiskWay::kSnapshot ? disk.overlay : disk.image;
      if (record.way == DiskWay::kCopy)
        file = fmt::format("{}, the copy of {}", disk_object(number), disk.image);
      untidy_.push_back({record.checkpoint, file, finished.error().message()});
    }
    // Who they are is known by the record alone, as long as they are over what is to be merged yet.
    return done && std::ranges::none_of(living_children(record), [&](const std::string& child) {
             return needs_.is_over_overlay(child);
           });
  }

  // ---- what another VM's place was taken from ------------------------

  /// True when none is left.
  bool remove_abandoned(DiskRecord& record) {
    bool done = true;
    std::vector<std::string> removed;
    const std::vector<PrintedFile> abandoned = record.abandoned;
    for (auto file = abandoned.rbegin(); file != abandoned.rend(); ++file) {
      const bool was_there = file_exists(file->path);
      const auto gone = remove_abandoned_file(*file);
      if (gone) {
        removed.push_back(file->path);
        if (was_there) tidied_.push_back({record.checkpoint, file->path, "", false});
      } else {
        untidy_.push_back({record.checkpoint, file->path, gone.error().message()});
        done = false;
      }
    }
    if (removed.empty()) return done;
    const auto noted = needs_.change(record, [&](DiskRecord& now) {
      std::erase_if(now.abandoned, [&](const PrintedFile& file) {
        return std::ranges::find(removed, file.path) != removed.end();
      });
    });
    if (!noted) untidy_.push_back({record.checkpoint, removed.front(), noted.error().message()});
    removed_abandoned_ = removed_abandoned_ || noted.ok();
    return done && noted.ok();
  }

  Result<void> remove_abandoned_file(const PrintedFile& file) {
    const std::string& path = file.path;
    if (!file_exists(folder_of(path))) return waiting("its folder is not there");
    if (is_gone(path)) return {};
    if (const auto who = needs_.who_may_need(path))
      return waiting(fmt::format("it is needed for checkpoint {}", *who));
    if (const auto over = needs_.all_over(path); !over.empty())
      return waiting(fmt::format("it is needed: {} is over it", over.front()));
    if (const auto users = users_of(path); !users.empty())
      return waiting(fmt::format("process {} has it open", users.front()));
    VMSIEVE_ASSIGN(const bool held, is_held_for_writing(path));
    if (held) return waiting("another host writes to it");
    VMSIEVE_ASSIGN(const FilePrint now, print_of(path));
    if (now != file.print)
      return waiting(
          "it was written to since another VM took its place: it may be removed if nobody wants it");
    if (::unlink(path.c_str()) != 0 && errno != ENOENT)
      return errno_error(errno, fmt::format("cannot remove {}", path));
    sync_folder_of(path);
    return {};
  }

  // ---- an overlay ----------------------------------------------------

  Result<void> tidy_and_tell(DiskRecord& record, const SavedDisk& disk) {
    const bool was_there = file_exists(disk.overlay);
    const bool was_emptied = contains(record.emptied, disk.overlay);
    const auto image = backing_of(disk.overlay);
    auto finished = tidy_overlay(record, disk);
    const bool emptied = !was_emptied && contains(record.emptied, disk.overlay);
    if (!emptied && (!was_there || !is_gone(disk.overlay))) return finished;
    const bool merged = emptied || contains(record.merged, disk.overlay);
    tidied_.push_back(
        {record.checkpoint, disk.overlay, merged && image.ok() ? image->value_or("") : "", emptied});
    return finished;
  }

  Result<void> tidy_overlay(DiskRecord& record, SavedDisk disk) {
    const std::string overlay = disk.overlay;
    if (!file_exists(folder_of(overlay))) return waiting("its folder is not there");
    if (is_gone(overlay)) {
      return needs_.is_under_something(overlay)
                 ? waiting("it is not there, and others are over it: put it there")
                 : Result<void>{};
    }
    if (!file_exists(overlay)) return waiting("it cannot be looked at");
    // Another merge may have put another image under it than the one of the checkpoint.
    VMSIEVE_ASSIGN(const auto format, backing_format_of(overlay));
    if (format) disk.format = *format == "file" || *format == "host_device" ? "raw" : *format;
    if (disk.format != "raw" && disk.format != "qcow2")
      return waiting(fmt::format("what is under it is of the format {}", disk.format));
    const Merge merge{needs_, record, disk, progress_};
    if (contains(record.merged, overlay)) {
      VMSIEVE_TRY(close_merged(merge));
      return remove_merged(merge);
    }
    VMSIEVE_ASSIGN(const auto image, backing_of(overlay));
    const std::vector<pid_t> users = users_of(overlay);
    if (!image) {
      // It stands for itself, as after flatten_disks(), or was never finished.
      VMSIEVE_ASSIGN(const FilePrint print, print_of(overlay));
      if (print.bytes == 0) return drop_unfinished(overlay, users);
      return {};
    }
    if (!file_exists(*image))
      return waiting(fmt::format("{}, which is under it, is not there: put it there", *image));
    if (users.empty()) {
      VMSIEVE_ASSIGN(const bool removed, remove_untaken(overlay, *image));
      return removed ? Result<void>{} : merge_by_qemu_img(merge, *image);
    }
    if (users.size() > 1) return waiting(fmt::format("processes {} and {} have it open", users[0], users[1]));
    VMSIEVE_ASSIGN(Holder holder, hold(users[0], needs_));
    return holder.vm.libvirt ? merge_by_libvirt(merge, *image, holder) : merge_by_qemu(merge, *image, holder);
  }

  /// A file that was to become an overlay.
  Result<void> drop_unfinished(const std::string& overlay, const std::vector<pid_t>& users) {
    if (users.size() > 1) return waiting("several processes have it open");
    if (users.size() == 1) {
      VMSIEVE_ASSIGN(Holder holder, hold(users[0], needs_));
      VMSIEVE_ASSIGN(const VmChains chains, VmChains::read(*holder.qmp, holder.vm.process.working_directory));
      if (chains.unknown().empty() && !chains.top_over(overlay)) close_nodes(chains, overlay, *holder.qmp);
      if (!users_of(overlay).empty()) return waiting(fmt::format("process {} has it open", users[0]));
    }
    (void)::unlink(overlay.c_str());
    return {};
  }

  /// Of a save of a domain of libvirt's that was killed before the instant: the VM still writes to the image,
  /// and nobody has ever written to the overlay.
  Result<bool> remove_untaken(const std::string& overlay, const std::string& image) {
    VMSIEVE_ASSIGN(const bool empty, is_empty_image(overlay));
    if (!empty || needs_.why_needed(overlay, "", -1)) return false;
    VMSIEVE_ASSIGN(const bool in_use, is_held_for_writing(image));
    const std::vector<pid_t> users = users_of(image);
    if (!in_use || users.size() != 1 || !read_qemu_process(users[0])) return false;
    // What libvirt is still about to do is done when it answers.
    VMSIEVE_ASSIGN(const Holder holder, hold(users[0], needs_));
    VMSIEVE_ASSIGN(const VmChains chains, VmChains::read(*holder.qmp, holder.vm.process.working_directory));
    const BlockNode* const node = chains.image(image);
    const auto top = chains.top_over(image);
    if (node == nullptr || !top || *top != node->name) return false;
    // Nobody can open it from here on; who has done so is seen.
    const std::string aside = overlay + ".untaken";
    if (::rename(overlay.c_str(), aside.c_str()) != 0)
      return errno_error(errno, fmt::format("cannot remove {}", overlay));
    if (users_of(aside).empty()) {
      (void)::unlink(aside.c_str());
      return true;
    }
    if (::rename(aside.c_str(), overlay.c_str()) != 0)
      return errno_error(errno, fmt::format("cannot give {} its name back", overlay));
    return waiting("a process has opened it just now");
  }

  // ---- a copy --------------------------------------------------------

  /// A restored guest's file over the copy of a disk; of one that cannot be read it is taken to be.
  std::optional<std::string> child_over_copy(const DiskRecord& record, u64 number) const {
    const auto copy = store_.object_path(record.checkpoint, disk_object(number));
    for (const std::string& child : living_children(record)) {
      const auto backing = backing_of(child);
      if (!copy || !backing || (*backing && same_file(**backing, *copy))) return child;
    }
    return std::nullopt;
  }

  /// One that is still being made, for somebody who was killed.
  Result<void> end_copy(const DiskRecord& record, const SavedDisk& disk, u64 number) {
    if (const auto over = child_over_copy(record, number)) {
      return waiting(
          fmt::format("{}, of a guest restored from it, is over it: remove that when the guest is not needed "
                      "any more, and run "
                      "vmsieve disk tidy",
                      *over));
    }
    const std::string node = overlay_node(record.checkpoint, number);
    for (const pid_t pid : users_of(disk.image)) {
      if (!read_qemu_process(pid)) continue;
      VMSIEVE_ASSIGN(const Holder holder, hold(pid, needs_));
      QmpClient& qmp = *holder.qmp;
      VMSIEVE_ASSIGN(const Json jobs, qmp.execute("query-jobs"));
      for (const Json& job : jobs) {
        if (json_string(job, "id") != node) continue;
        if (json_string(job, "status") != "concluded") (void)qmp.execute("job-cancel", Json{{"id", node}});
        (void)wait_for_job(qmp, node);
      }
      for (const std::string& name : {node, overlay_file_node(record.checkpoint, number)})
        (void)qmp.execute("blockdev-del", Json{{"node-name", name}}, kCommandPatience);
    }
    return {};
  }

  // ---- a snapshot in an image ----------------------------------------

  /// The cluster does it, whoever has the image open.
  static Result<void> remove_snapshot_in_cluster(const SavedDisk& disk) {
    VMSIEVE_ASSIGN(const std::string image, rbd_filename(disk.source, ""));
    auto removed = run_qemu_img({"snapshot", "-d", disk.snapshot, image});
    if (removed.ok()) return {};
    // QEMU's words of an image (block/rbd.c), and of a snapshot, that are gone.
    const std::string words = removed.error().message();
    const bool no_image = words.find("error reading header") != std::string::npos &&
                          words.find("No such file") != std::string::npos;
    if (no_image || words.find("snapshot not found") != std::string::npos) return {};
    return removed.error();
  }

  Result<void> remove_snapshot(DiskRecord& record, const SavedDisk& disk) {
    if (!disk.source.empty()) return remove_snapshot_in_cluster(disk);
    if (is_gone(disk.image)) return {};
    const std::vector<pid_t> users = users_of(disk.image);
    if (users.empty()) {
      const auto is_as_it_was = [&](const SavedDisk& one) {
        return one.print != FilePrint{} && same_file(one.image, disk.image) && check_print(one).ok();
      };
      const auto has = [&](const DiskRecord& other) {
        return std::ranges::any_of(other.disks, is_as_it_was);
      };
      const bool printed =
          std::ranges::any_of(needs_.checkpoints(), has) || std::ranges::any_of(needs_.forsaken(), has);
      if (printed) VMSIEVE_TRY(needs_.change(record, [&](DiskRecord& now) { add(now.renamed, disk.image); }));
      auto removed = run_qemu_img({"snapshot", "-d", disk.snapshot, disk.image});
      if (!removed && removed.error().message().find("find") == std::string::npos) return removed.error();
      return take_prints_anew(needs_, record);
    }
    VMSIEVE_ASSIGN(Holder holder, hold(users[0], needs_));
    VMSIEVE_ASSIGN(const VmChains chains, VmChains::read(*holder.qmp, holder.vm.process.working_directory));
    const auto top = chains.top_over(disk.image);
    const BlockNode* const node = chains.image(disk.image);
    if (!top || node == nullptr || *top != node->name)
      return waiting(fmt::format("process {} has it open, and does not write to it", users[0]));
    auto removed = holder.qmp->execute(
        "blockdev-snapshot-delete-internal-sync",
        Json{{"device", disk.device.empty() ? *top : disk.device}, {"name", disk.snapshot}},
        kCommandPatience);
    if (removed.ok() || removed.error().message().find("does not exist") != std::string::npos) return {};
    return removed.error();
  }

  Store& store_;
  DiskNeeds needs_;
  const ProgressFunction& progress_;
  std::vector<TidiedFile> tidied_;
  std::vector<UntidyDisk> untidy_;
  bool removed_abandoned_ = false;  ///< in this turn through the records
};

}  // namespace

Result<Tidied> tidy_disks(Store& store, const ProgressFunction& progress) {
  return Tidy(store, progress).run();
}

}  // namespace vmsieve
