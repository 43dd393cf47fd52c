// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/disks/tidy.h"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <thread>

#include "vmsieve/disks/disk_point.h"
#include "vmsieve/disks/image_file.h"
#include "vmsieve/disks/vm_chain.h"
#include "vmsieve/image/disk_record.h"
#include "vmsieve/qemu/qmp_wire.h"
#include "vmsieve/qemu/vm_lock.h"

namespace vmsieve {

namespace {

using Json = QmpClient::Json;
using std::chrono::milliseconds;

constexpr milliseconds kCommandPatience{30000};
constexpr int kAttempts = 4;
constexpr milliseconds kBetweenAttempts{250};

bool contains(const std::vector<std::string>& paths, const std::string& path) {
  return std::ranges::any_of(paths, [&](const std::string& one) { return same_file(one, path); });
}

void add(std::vector<std::string>& paths, const std::string& path) {
  if (!contains(paths, path)) paths.push_back(path);
}

void take_out(std::vector<std::string>& paths, const std::string& path) {
  std::erase_if(paths, [&](const std::string& one) { return same_file(one, path); });
}

/// A VM whose QEMU has a file open, with its monitor connected.
struct Holder {
  VmAddress vm;
  VmLock lock;
  std::unique_ptr<QmpClient> qmp;
};

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

Error waiting(std::string why) { return {ErrorKind::kBusy, std::move(why)}; }

class Tidy {
 public:
  Tidy(Store& store, const ProgressFunction& progress) : store_(store), progress_(progress) {}

  Result<std::vector<UntidyDisk>> run() {
    VMSIEVE_ASSIGN(Store::DiskRecords ids, store_.disk_records());
    if (ids.forsaken.empty()) return std::vector<UntidyDisk>{};
    VMSIEVE_ASSIGN(const auto lock, store_.lock_disks());
    VMSIEVE_ASSIGN(ids, store_.disk_records());  // as the one before has left them
    for (const std::string& id : ids.checkpoints) read(id, records_);
    for (const std::string& id : ids.forsaken) read(id, forsaken_);
    if (!untidy_.empty()) return std::move(untidy_);  // who needs what is not known
    for (DiskRecord& record : forsaken_) {
      const bool done = tidy(record);
      if (done) VMSIEVE_TRY(store_.forget_disks(record.checkpoint));
    }
    return std::move(untidy_);
  }

 private:
  void read(const std::string& id, std::vector<DiskRecord>& into) {
    const auto text = store_.read_disks(id);
    auto record = text.ok() ? decode_disks(*text) : Result<DiskRecord>{text.error()};
    if (record.ok()) {
      into.push_back(std::move(*record));
    } else {
      untidy_.push_back({id, "", record.error().message()});
    }
  }

  /// Changes the record in the store, and what is known of it here.
  Result<void> change(DiskRecord& record, const std::function<void(DiskRecord&)>& make) {
    return store_.change_disks(record.checkpoint, [&](const std::string& text) -> Result<std::string> {
      VMSIEVE_ASSIGN(DiskRecord now, decode_disks(text));
      make(now);
      const std::string changed = encode_disks(now);
      VMSIEVE_ASSIGN(record, decode_disks(changed));  // what nobody could read is not written
      return changed;
    });
  }

  /// True when nothing of it is left to do.
  bool tidy(DiskRecord& record) {
    bool done = true;
    const std::vector<SavedDisk> disks = record.disks;
    for (u64 number = 0; number < disks.size(); ++number) {
      const SavedDisk& disk = disks[number];
      const auto finished = [&]() -> Result<void> {
        switch (record.way) {
          case DiskWay::kSnapshot: return tidy_overlay(record, disk);
          case DiskWay::kInternal: return remove_snapshot(record, disk);
          case DiskWay::kCopy: break;
        }
        return end_copy(record, disk, number);
      }();
      if (finished) continue;
      done = false;
      if (finished.error().message().empty()) continue;  // as it is to be
      const std::string& file = record.way == DiskWay::kSnapshot ? disk.overlay : disk.image;
      untidy_.push_back({record.checkpoint, file, finished.error().message()});
    }
    return done;
  }

  // ---- who needs what ------------------------------------------------

  std::vector<std::string> living_children(const DiskRecord& record) const {
    std::vector<std::string> living;
    for (const std::string& child : record.children) {
      if (!is_gone(child)) living.push_back(child);
    }
    return living;
  }

  /// Images over `image`, wherever this store has made them, or beside it.
  std::vector<std::string> all_over(const std::string& image) const {
    std::vector<std::string> over = images_over(image);
    const auto look_at = [&](const std::string& path) {
      if (path.empty() || !file_exists(path)) return;
      const auto backing = backing_of(path);
      if (backing.ok() && *backing && same_file(**backing, image)) add(over, path);
    };
    for (const auto* records : {&records_, &forsaken_}) {
      for (const DiskRecord& record : *records) {
        for (const SavedDisk& disk : record.disks) {
          look_at(disk.image);
          look_at(disk.overlay);
        }
        for (const std::string& child : record.children) look_at(child);
      }
    }
    return over;
  }

  /// Why the content of `image` must stay as it is while what is in `overlay` goes into it; none: it need
  /// not. `holder` may have it open.
  std::optional<std::string> why_needed(const std::string& image, const std::string& overlay,
                                        pid_t holder) const {
    for (const DiskRecord& record : records_) {
      if (record.way != DiskWay::kSnapshot) continue;
      for (const SavedDisk& disk : record.disks) {
        if (same_file(disk.image, image))
          return fmt::format("checkpoint {} needs {} as it is", record.checkpoint, image);
      }
    }
    for (const std::string& other : all_over(image)) {
      if (!same_file(other, overlay) && !is_emptied(other))
        return fmt::format("{} is over {} too", other, image);
    }
    for (const pid_t pid : users_of(image)) {
      if (pid != holder) return fmt::format("process {} has {} open", pid, image);
    }
    return std::nullopt;
  }

  /// It stayed for the sake of its name, holds nothing, and nobody uses it.
  bool is_emptied(const std::string& overlay) const {
    for (const DiskRecord& record : forsaken_) {
      if (!contains(record.emptied, overlay)) continue;
      const auto empty = is_empty_image(overlay);
      return empty.ok() && *empty && users_of(overlay).empty();
    }
    return false;
  }

  /// Nobody has written to what is about to be merged, and is not to have changed since a checkpoint: neither
  /// to the image under the overlay, nor to an overlay that is the disk of others.
  Result<void> check_unchanged(const DiskRecord& record, const SavedDisk& disk,
                               const std::string& image) const {
    if (contains(record.begun, disk.overlay)) return {};
    if (disk.print != FilePrint{} && same_file(disk.image, image)) {
      if (const auto same = check_print(disk); !same)
        return waiting(fmt::format("{} was written to since the checkpoint", image));
    }
    for (const DiskRecord& other : records_) {
      if (other.way == DiskWay::kCopy) continue;
      for (const SavedDisk& one : other.disks) {
        if (!same_file(one.image, disk.overlay)) continue;
        if (other.way == DiskWay::kInternal)
          return waiting(fmt::format("a snapshot of checkpoint {} is in it", other.checkpoint));
        if (const auto same = check_print(one); !same)
          return waiting(fmt::format("it is not what it was at checkpoint {}", other.checkpoint));
      }
    }
    return {};
  }

  Result<void> begin(DiskRecord& record, const SavedDisk& disk, const std::string& image) {
    VMSIEVE_TRY(check_unchanged(record, disk, image));
    return change(record, [&](DiskRecord& now) { add(now.begun, disk.overlay); });
  }

  // ---- an overlay ----------------------------------------------------

  Result<void> tidy_overlay(DiskRecord& record, SavedDisk disk) {
    const std::string overlay = disk.overlay;
    if (!file_exists(folder_of(overlay))) return waiting("its folder is not there");
    if (is_gone(overlay)) return {};
    if (!file_exists(overlay)) return waiting("it cannot be looked at");
    // Another merge may have put another image under it than the one of the checkpoint.
    VMSIEVE_ASSIGN(const auto format, backing_format_of(overlay));
    if (format) disk.format = *format == "file" || *format == "host_device" ? "raw" : *format;
    if (disk.format != "raw" && disk.format != "qcow2")
      return waiting(fmt::format("what is under it is of the format {}", disk.format));
    if (contains(record.merged, overlay)) {
      VMSIEVE_TRY(close_merged(record, disk));
      return remove_merged(record, disk);
    }
    VMSIEVE_ASSIGN(const auto image, backing_of(overlay));
    const std::vector<pid_t> users = users_of(overlay);
    if (!image) {
      // It stands for itself, as after flatten_disks(), or was never finished.
      VMSIEVE_ASSIGN(const FilePrint print, print_of(overlay));
      if (print.bytes == 0) return drop_unfinished(overlay, users);
      return {};
    }
    if (users.empty()) {
      VMSIEVE_ASSIGN(const bool removed, remove_untaken(overlay, *image));
      return removed ? Result<void>{} : merge_offline(record, disk, *image);
    }
    if (users.size() > 1) return waiting(fmt::format("processes {} and {} have it open", users[0], users[1]));
    VMSIEVE_ASSIGN(Holder holder, hold(users[0]));
    return merge_online(record, disk, *image, holder);
  }

  /// A file that was to become an overlay.
  Result<void> drop_unfinished(const std::string& overlay, const std::vector<pid_t>& users) {
    if (users.size() > 1) return waiting("several processes have it open");
    if (users.size() == 1) {
      VMSIEVE_ASSIGN(Holder holder, hold(users[0]));
      VMSIEVE_ASSIGN(const VmChains chains, VmChains::read(*holder.qmp, holder.vm.process.working_directory));
      if (!chains.top_over(overlay)) close_nodes(chains, overlay, *holder.qmp);
      if (!users_of(overlay).empty()) return waiting(fmt::format("process {} has it open", users[0]));
    }
    (void)::unlink(overlay.c_str());
    return {};
  }

  /// The VM has left it, and who was to have QEMU close it was killed.
  Result<void> close_merged(DiskRecord& record, const SavedDisk& disk) {
    const std::vector<pid_t> users = users_of(disk.overlay);
    if (users.size() != 1) return {};
    VMSIEVE_ASSIGN(Holder holder, hold(users[0]));
    if (holder.vm.libvirt) return {};  // libvirt does it by itself
    VMSIEVE_TRY(end_old_job(record, disk, *holder.qmp,
                            overlay_node(record.checkpoint, number_of(record, disk.overlay))));
    VMSIEVE_ASSIGN(const VmChains chains, VmChains::read(*holder.qmp, holder.vm.process.working_directory));
    if (!chains.top_over(disk.overlay)) close_nodes(chains, disk.overlay, *holder.qmp);
    return {};
  }

  static void close_nodes(const VmChains& chains, const std::string& overlay, QmpClient& qmp) {
    const BlockNode* const node = chains.image(overlay);
    for (const std::string& name : {node != nullptr ? node->name : "", chains.file_node(overlay)}) {
      if (!name.empty()) (void)qmp.execute("blockdev-del", Json{{"node-name", name}}, kCommandPatience);
    }
  }

  /// Of a save of a domain of libvirt's that was killed before the instant: the VM still writes to the image,
  /// and nobody has ever written to the overlay.
  Result<bool> remove_untaken(const std::string& overlay, const std::string& image) {
    VMSIEVE_ASSIGN(const bool empty, is_empty_image(overlay));
    if (!empty || why_needed(overlay, "", -1)) return false;
    VMSIEVE_ASSIGN(const bool in_use, is_held_for_writing(image));
    const std::vector<pid_t> users = users_of(image);
    if (!in_use || users.size() != 1 || !read_qemu_process(users[0])) return false;
    // What libvirt is still about to do is done when it answers.
    VMSIEVE_ASSIGN(const Holder holder, hold(users[0]));
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

  static Result<Holder> reach(pid_t pid) {
    auto vm = resolve_vm(fmt::format("pid:{}", pid));
    if (!vm) return waiting(fmt::format("process {} has it open: {}", pid, vm.error().message()));
    VMSIEVE_ASSIGN(VmLock lock, VmLock::take(pid));
    VMSIEVE_ASSIGN(auto qmp, QmpClient::connect(vm->qmp_path));
    return Holder{std::move(*vm), std::move(lock), std::move(qmp)};
  }

  /// From here on no other process takes a checkpoint of the VM. One that was taken until then may need what
  /// the records as they were read do not tell.
  Result<Holder> hold(pid_t pid) {
    VMSIEVE_ASSIGN(Holder holder, reach(pid));
    VMSIEVE_ASSIGN(const Store::DiskRecords ids, store_.disk_records());
    for (const std::string& id : ids.checkpoints) {
      const auto is_it = [&](const DiskRecord& record) { return record.checkpoint == id; };
      if (std::ranges::any_of(records_, is_it)) continue;
      const std::size_t before = untidy_.size();
      read(id, records_);
      if (untidy_.size() != before) return waiting("the record of a checkpoint's disks cannot be read");
    }
    return holder;
  }

  /// What is over an overlay that is about to be merged, and of no checkpoint of this store: of another
  /// store, whose checkpoint has the overlay as its disk, or somebody's own.
  Result<void> check_known_over(const std::string& overlay, const std::string& in_chain = "") const {
    std::vector<std::string> all = all_over(overlay);
    if (!in_chain.empty()) add(all, in_chain);
    for (const std::string& over : all) {
      const auto knows = [&](const DiskRecord& record) {
        return contains(record.children, over) ||
               std::ranges::any_of(record.disks, [&](const SavedDisk& disk) {
                 return !disk.overlay.empty() && same_file(disk.overlay, over);
               });
      };
      if (std::ranges::any_of(records_, knows) || std::ranges::any_of(forsaken_, knows)) continue;
      return waiting(fmt::format("{} is over it, and of no checkpoint of this store", over));
    }
    return {};
  }

  u64 number_of(const DiskRecord& record, const std::string& overlay) const {
    const auto it = std::ranges::find(record.disks, overlay, &SavedDisk::overlay);
    return static_cast<u64>(it - record.disks.begin());
  }

  Result<void> merge_online(DiskRecord& record, const SavedDisk& disk, const std::string& image,
                            Holder& holder) {
    QmpClient& qmp = *holder.qmp;
    if (holder.vm.libvirt) return merge_by_libvirt(record, disk, image, holder);
    const std::string job = overlay_node(record.checkpoint, number_of(record, disk.overlay));
    VMSIEVE_TRY(end_old_job(record, disk, qmp, job));
    VMSIEVE_ASSIGN(const VmChains chains, VmChains::read(qmp, holder.vm.process.working_directory));
    const BlockNode* const over = chains.image(disk.overlay);
    if (over == nullptr) return waiting("QEMU has no block node for it, or several");
    const auto top = chains.top_over(disk.overlay);
    if (!top) return take_leave(record, disk, image, chains, *over, qmp);
    const BlockNode* const under = chains.image(image);
    if (under == nullptr) return waiting(fmt::format("QEMU has no block node for {}, or several", image));
    if (const auto why = why_needed(image, disk.overlay, holder.vm.process.pid)) return waiting(*why);
    VMSIEVE_TRY(check_known_over(disk.overlay, chains.over(disk.overlay)));
    VMSIEVE_TRY(begin(record, disk, image));
    const bool active = *top == over->name;
    if (active) VMSIEVE_TRY(change(record, [&](DiskRecord& now) { take_out(now.leaving, disk.overlay); }));
    Json arguments{{"job-id", job}, {"device", *top}, {"base-node", under->name}, {"auto-dismiss", false}};
    if (!active) {
      VMSIEVE_TRY(note_renamed(record, disk.overlay));
      VMSIEVE_TRY(change(record, [&](DiskRecord& now) { add(now.leaving, disk.overlay); }));
      arguments["top-node"] = over->name;
      // Else QEMU may write a name that only it understands ("json:...") into the header above.
      arguments["backing-file"] = image;
    }
    VMSIEVE_TRY(begin_commit(qmp, "block-commit", arguments));
    if (active) VMSIEVE_TRY(pivot(record, disk, qmp, job));
    VMSIEVE_TRY(wait_for_job(qmp, job, progress_));
    VMSIEVE_ASSIGN(const VmChains after, VmChains::read(qmp, holder.vm.process.working_directory));
    if (after.top_over(disk.overlay)) return waiting("QEMU still has it in the chain of a disk");
    return take_leave(record, disk, image, after, *over, qmp);
  }

  /// A file that was closed a moment ago may be locked still (a killed QEMU's, or QEMU's own of a job
  /// before).
  static Result<void> begin_commit(QmpClient& qmp, const char* command, const Json& arguments) {
    for (int attempt = 1;; ++attempt) {
      const auto begun = qmp.execute(command, arguments, kCommandPatience);
      if (begun.ok()) return {};
      if (begun.error().kind() != ErrorKind::kRefused || attempt == kAttempts) return begun.error();
      std::this_thread::sleep_for(kBetweenAttempts);
    }
  }

  /// The same by libvirt, which knows from then on what the domain's disks are, and closes what is merged.
  Result<void> merge_by_libvirt(DiskRecord& record, const SavedDisk& disk, const std::string& image,
                                Holder& holder) {
    QmpClient& qmp = *holder.qmp;
    VMSIEVE_TRY(end_libvirts_job(record, disk, image, qmp));
    VMSIEVE_ASSIGN(const LibvirtDisk over, libvirt_disk_with(qmp, disk.overlay));
    if (over.target.empty()) return leave_by_libvirt(record, disk, image, qmp);
    if (!over.job.empty()) return waiting(fmt::format("libvirt has a job on the disk {}", over.target));
    if (!same_file(over.under, image))
      return waiting(fmt::format("libvirt does not know that {} is under it", image));
    if (const auto why = why_needed(image, disk.overlay, holder.vm.process.pid)) return waiting(*why);
    VMSIEVE_ASSIGN(const VmChains chains, VmChains::read(qmp, holder.vm.process.working_directory));
    VMSIEVE_TRY(check_known_over(disk.overlay, chains.over(disk.overlay)));
    VMSIEVE_TRY(begin(record, disk, image));
    if (!over.active) {
      VMSIEVE_TRY(note_renamed(record, disk.overlay));
      VMSIEVE_TRY(change(record, [&](DiskRecord& now) { add(now.leaving, disk.overlay); }));
    }
    VMSIEVE_TRY(begin_commit(
        qmp, "vmsieve-disk-commit",
        Json{{"target", over.target}, {"file", over.file}, {"under", over.under}, {"active", over.active}}));
    VMSIEVE_TRY(end_libvirts_job(record, disk, image, qmp));
    VMSIEVE_ASSIGN(const LibvirtDisk after, libvirt_disk_with(qmp, disk.overlay));
    if (!after.target.empty()) return waiting("libvirt still has it in the chain of a disk");
    return leave_by_libvirt(record, disk, image, qmp);
  }

  /// Waits for a commit of the overlay, also one of somebody who was killed; an active one is completed as by
  /// pivot().
  Result<void> end_libvirts_job(DiskRecord& record, const SavedDisk& disk, const std::string& image,
                                QmpClient& qmp) {
    for (milliseconds pause{1};; pause = std::min(2 * pause, milliseconds{50})) {
      VMSIEVE_ASSIGN(const LibvirtDisk now, libvirt_disk_with(qmp, disk.overlay));
      const bool active = now.job == "active-commit" && now.active && same_file(now.mirror, image);
      if (!active && now.job != "commit") return {};
      if (active && now.ready) {
        // ---- if QEMU dies between this and the next change, nobody knows which of the two is the disk ----
        VMSIEVE_TRY(change(record, [&](DiskRecord& noted) { add(noted.leaving, disk.overlay); }));
        VMSIEVE_TRY(qmp.execute("vmsieve-disk-pivot", Json{{"target", now.target}}, kCommandPatience));
        return {};
      }
      if (progress_) progress_({"merging", now.done, now.total});
      std::this_thread::sleep_for(pause);
    }
  }

  /// The overlay is in no disk of the domain.
  Result<void> leave_by_libvirt(DiskRecord& record, const SavedDisk& disk, const std::string& image,
                                QmpClient& qmp) {
    VMSIEVE_ASSIGN(const LibvirtDisk under, libvirt_disk_with(qmp, image));
    (void)qmp.execute("vmsieve-disk-forget-chains", Json::object(), kCommandPatience);
    const bool is_merged = contains(record.leaving, disk.overlay) && !under.target.empty();
    if (is_merged) VMSIEVE_TRY(mark_merged(record, disk));
    // libvirt closes it when it has said that all is done.
    for (int attempt = 1; attempt < kAttempts && !users_of(disk.overlay).empty(); ++attempt)
      std::this_thread::sleep_for(kBetweenAttempts);
    if (is_merged) return remove_merged(record, disk);
    if (const auto users = users_of(disk.overlay); !users.empty())
      return waiting(fmt::format("process {} has it open", users.front()));
    return merge_offline(record, disk, image);
  }

  /// QEMU is about to write another backing file's name into what is over the overlay.
  Result<void> note_renamed(DiskRecord& record, const std::string& overlay) {
    std::vector<std::string> renamed;
    for (const std::string& over : all_over(overlay)) {
      const auto is_as_it_was = [&](const SavedDisk& one) {
        return one.print != FilePrint{} && same_file(one.image, over) && check_print(one).ok();
      };
      const auto has = [&](const DiskRecord& other) {
        return std::ranges::any_of(other.disks, is_as_it_was);
      };
      if (std::ranges::any_of(records_, has) || std::ranges::any_of(forsaken_, has)) add(renamed, over);
    }
    return change(record, [&](DiskRecord& now) {
      for (const std::string& path : renamed) add(now.renamed, path);
    });
  }

  Result<void> take_prints_anew(DiskRecord& record) {
    for (const std::string& renamed : std::vector<std::string>(record.renamed))
      VMSIEVE_TRY(take_print_anew(renamed));
    if (record.renamed.empty()) return {};
    return change(record, [](DiskRecord& now) { now.renamed.clear(); });
  }

  /// Of an image of checkpoints that was changed for a good reason.
  Result<void> take_print_anew(const std::string& image) {
    VMSIEVE_TRY(sync_file(image));
    VMSIEVE_ASSIGN(const FilePrint print, print_of(image));
    for (auto* records : {&records_, &forsaken_}) {
      for (DiskRecord& other : *records) {
        const auto is_image = [&](const SavedDisk& one) {
          return one.print != FilePrint{} && same_file(one.image, image);
        };
        if (std::ranges::none_of(other.disks, is_image)) continue;
        VMSIEVE_TRY(change(other, [&](DiskRecord& now) {
          for (SavedDisk& one : now.disks) {
            if (is_image(one)) one.print = print;
          }
        }));
      }
    }
    return {};
  }

  /// Of somebody who was killed in the midst of it.
  Result<void> end_old_job(DiskRecord& record, const SavedDisk& disk, QmpClient& qmp,
                           const std::string& job) {
    VMSIEVE_ASSIGN(const Json jobs, qmp.execute("query-jobs"));
    for (const Json& one : jobs) {
      if (json_string(one, "id") != job) continue;
      if (json_string(one, "status") != "concluded" && json_string(one, "type") == "commit")
        VMSIEVE_TRY(pivot(record, disk, qmp, job));
      (void)wait_for_job(qmp, job, progress_);  // what has come of it is seen by the chain
    }
    return {};
  }

  /// The VM leaves the overlay for the image, as soon as both hold the same.
  Result<void> pivot(DiskRecord& record, const SavedDisk& disk, QmpClient& qmp, const std::string& job) {
    for (milliseconds pause{1};; pause = std::min(2 * pause, milliseconds{50})) {
      VMSIEVE_ASSIGN(const Json jobs, qmp.execute("query-jobs"));
      const auto it = std::find_if(jobs.begin(), jobs.end(),
                                   [&](const Json& one) { return json_string(one, "id") == job; });
      const std::string status = it == jobs.end() ? "" : json_string(*it, "status");
      if (status == "ready") break;
      if (status.empty() || status == "concluded" || status == "aborting") return {};
      if (progress_)
        progress_({"merging", json_u64(*it, "current-progress").value_or(0),
                   json_u64(*it, "total-progress").value_or(0)});
      std::this_thread::sleep_for(pause);
    }
    // ---- if QEMU dies between this and the next change, nobody knows which of the two is the disk ----
    VMSIEVE_TRY(change(record, [&](DiskRecord& now) { add(now.leaving, disk.overlay); }));
    VMSIEVE_TRY(qmp.execute("job-complete", Json{{"id", job}}, kCommandPatience));
    return {};
  }

  /// The overlay is in no disk of the VM whose QEMU has it open.
  Result<void> take_leave(DiskRecord& record, const SavedDisk& disk, const std::string& image,
                          const VmChains& chains, const BlockNode& over, QmpClient& qmp) {
    const bool never_was = !over.has_backing;
    // A disk without either of them has copied what it needed (flatten_disks()).
    const bool is_merged = contains(record.leaving, disk.overlay) && chains.top_over(image).has_value();
    if (is_merged) VMSIEVE_TRY(mark_merged(record, disk));
    close_nodes(chains, disk.overlay, qmp);
    if (is_merged) return remove_merged(record, disk);
    if (never_was) {
      (void)::unlink(disk.overlay.c_str());
      return {};
    }
    if (const auto users = users_of(disk.overlay); !users.empty())
      return waiting(fmt::format("process {} has it open", users.front()));
    return merge_offline(record, disk, image);
  }

  Result<void> mark_merged(DiskRecord& record, const SavedDisk& disk) {
    return change(record, [&](DiskRecord& now) {
      add(now.merged, disk.overlay);
      take_out(now.leaving, disk.overlay);
    });
  }

  /// What is in the overlay is in the image under it as well. Checkpoints whose disk it was have the image
  /// from now on, where nobody has made files over the overlay.
  Result<void> remove_merged(DiskRecord& record, const SavedDisk& disk) {
    const std::string& overlay = disk.overlay;
    VMSIEVE_ASSIGN(const auto image, backing_of(overlay));
    if (!image) return waiting("it has lost its backing file");
    VMSIEVE_TRY(take_prints_anew(record));
    // Before the overlay goes: what it held, and the headers that do not name it any more.
    VMSIEVE_TRY(sync_file(*image));
    for (const std::string& over : all_over(*image)) VMSIEVE_TRY(sync_file(over));
    for (DiskRecord& other : records_) {
      if (other.way != DiskWay::kSnapshot) continue;
      const bool its = std::ranges::any_of(
          other.disks, [&](const SavedDisk& one) { return same_file(one.image, overlay); });
      if (!its) continue;
      VMSIEVE_ASSIGN(const FilePrint print, print_of(*image));
      VMSIEVE_TRY(change(other, [&](DiskRecord& now) {
        if (!living_children(now).empty()) return;
        for (SavedDisk& one : now.disks) {
          if (!same_file(one.image, overlay)) continue;
          one.image = *image;
          one.format = disk.format;
          one.print = print;
        }
      }));
      if (!living_children(other).empty())
        return waiting(
            fmt::format("guests that were restored from checkpoint {} are over it", other.checkpoint));
    }
    const auto over = all_over(overlay);
    if (!over.empty()) return waiting(fmt::format("{} is over it", over.front()));
    if (const auto users = users_of(overlay); !users.empty())
      return waiting(fmt::format("process {} has it open", users.front()));
    if (::unlink(overlay.c_str()) != 0 && errno != ENOENT)
      return errno_error(errno, fmt::format("cannot remove {}", overlay));
    sync_folder_of(overlay);
    return {};
  }

  /// Nobody has it open. Where the VM went on to another overlay, it goes; the last one stays, empty: it is
  /// the name by which the VM's disk is known.
  Result<void> merge_offline(DiskRecord& record, const SavedDisk& disk, const std::string& image) {
    const bool leaving = contains(record.leaving, disk.overlay);
    if (leaving && (was_passed_over(disk.overlay, image) || has_left(disk.overlay, image))) {
      VMSIEVE_TRY(mark_merged(record, disk));
      return remove_merged(record, disk);
    }
    const bool superseded = is_superseded(disk.overlay);
    if (leaving && !superseded) {
      return waiting(fmt::format(
          "the VM ended in the moment in which it left it for {}: look which of them is the newer", image));
    }
    if (is_emptied(disk.overlay)) return waiting("");
    if (const auto why = why_needed(image, disk.overlay, -1)) return waiting(*why);
    VMSIEVE_TRY(check_known_over(disk.overlay));
    VMSIEVE_TRY(begin(record, disk, image));
    const std::vector<std::string> over = superseded ? all_over(disk.overlay) : std::vector<std::string>{};
    for (const std::string& one : over) {
      if (const auto users = users_of(one); !users.empty())
        return waiting(fmt::format("process {} has {} open, which is over it", users.front(), one));
    }
    VMSIEVE_TRY(note_renamed(record, disk.overlay));
    if (!superseded) {
      VMSIEVE_TRY(run_qemu_img({"commit", "-q", "-f", "qcow2", disk.overlay}));
      VMSIEVE_TRY(change(record, [&](DiskRecord& now) { add(now.emptied, disk.overlay); }));
      return waiting("");
    }
    // -d: it is the disk of others until they have the image.
    VMSIEVE_TRY(run_qemu_img({"commit", "-q", "-d", "-f", "qcow2", disk.overlay}));
    for (const std::string& one : over)
      VMSIEVE_TRY(run_qemu_img({"rebase", "-u", "-f", "qcow2", "-F", disk.format, "-b", image, one}));
    VMSIEVE_TRY(mark_merged(record, disk));
    return remove_merged(record, disk);
  }

  /// The VM has left the overlay for one over it, or for a checkpoint's sake.
  bool is_superseded(const std::string& overlay) const {
    for (const auto* records : {&records_, &forsaken_}) {
      for (const DiskRecord& record : *records) {
        const auto is_image = [&](const SavedDisk& disk) { return same_file(disk.image, overlay); };
        if (record.way == DiskWay::kSnapshot && std::ranges::any_of(record.disks, is_image)) return true;
      }
    }
    return false;
  }

  /// A QEMU that wrote to the overlay writes to the image now, and has closed the overlay: as libvirt's does
  /// at the end of a merge.
  static bool has_left(const std::string& overlay, const std::string& image) {
    const std::vector<pid_t> users = users_of(image);
    if (users.size() != 1) return false;
    const auto qemu = read_qemu_process(users[0]);
    const auto in_use = is_held_for_writing(image);
    const auto print = print_of(overlay);
    return qemu.ok() && in_use.ok() && *in_use && print.ok() && started_before(*qemu, print->modified_ns);
  }

  /// What was made over the overlay is over the image now: it was merged, and nobody came to note it.
  bool was_passed_over(const std::string& overlay, const std::string& image) const {
    const std::vector<std::string> over = all_over(image);
    for (const auto* records : {&records_, &forsaken_}) {
      for (const DiskRecord& record : *records) {
        for (const SavedDisk& disk : record.disks) {
          if (!disk.overlay.empty() && same_file(disk.image, overlay) && contains(over, disk.overlay))
            return true;
        }
      }
    }
    return false;
  }

  // ---- a copy --------------------------------------------------------

  /// One that is still being made, for somebody who was killed.
  Result<void> end_copy(const DiskRecord& record, const SavedDisk& disk, u64 number) {
    if (const auto living = living_children(record); !living.empty())
      return waiting(fmt::format("{} of a restored guest is over the copy in the store", living.front()));
    const std::string node = overlay_node(record.checkpoint, number);
    for (const pid_t pid : users_of(disk.image)) {
      if (!read_qemu_process(pid)) continue;
      VMSIEVE_ASSIGN(const Holder holder, hold(pid));
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

  Result<void> remove_snapshot(DiskRecord& record, const SavedDisk& disk) {
    if (is_gone(disk.image)) return {};
    const std::vector<pid_t> users = users_of(disk.image);
    if (users.empty()) {
      const auto is_as_it_was = [&](const SavedDisk& one) {
        return one.print != FilePrint{} && same_file(one.image, disk.image) && check_print(one).ok();
      };
      const bool printed = std::ranges::any_of(
          records_, [&](const DiskRecord& other) { return std::ranges::any_of(other.disks, is_as_it_was); });
      if (printed) VMSIEVE_TRY(change(record, [&](DiskRecord& now) { add(now.renamed, disk.image); }));
      auto removed = run_qemu_img({"snapshot", "-d", disk.snapshot, disk.image});
      if (!removed && removed.error().message().find("find") == std::string::npos) return removed.error();
      return take_prints_anew(record);
    }
    VMSIEVE_ASSIGN(Holder holder, hold(users[0]));
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
  const ProgressFunction& progress_;
  std::vector<DiskRecord> records_;   ///< of checkpoints
  std::vector<DiskRecord> forsaken_;  ///< of what is none any more
  std::vector<UntidyDisk> untidy_;
};

}  // namespace

Result<std::vector<UntidyDisk>> tidy_disks(Store& store, const ProgressFunction& progress) {
  return Tidy(store, progress).run();
}

Result<std::vector<Flattened>> flatten_disks(const VmAddress& vm, const ProgressFunction& progress) {
  if (vm.libvirt)
    return Error(ErrorKind::kUnsupported, "libvirt runs this VM: use virsh blockpull, which knows its XML");
  VMSIEVE_ASSIGN(const VmLock lock, VmLock::take(vm.process.pid));
  VMSIEVE_ASSIGN(const auto qmp, QmpClient::connect(vm.qmp_path));
  VMSIEVE_ASSIGN(const auto disks, read_writable_disks(*qmp));
  std::vector<Flattened> flattened;
  for (const WritableDisk& disk : disks) {
    const auto path = image_path(disk.file);
    if (!path || disk.driver != "qcow2") continue;
    const std::string absolute = path->starts_with('/') ? *path : vm.process.working_directory + "/" + *path;
    VMSIEVE_ASSIGN(const auto chain, chain_of(absolute));
    if (chain.size() == 1) continue;
    const std::string job = "vmsieve-flatten";
    VMSIEVE_TRY(qmp->execute("block-stream",
                             Json{{"job-id", job}, {"device", disk.node}, {"auto-dismiss", false}},
                             kCommandPatience));
    if (auto done = wait_for_job(*qmp, job, progress); !done)
      return done.error().with_context(fmt::format("the disk {} ({})", disk.device, absolute));
    flattened.push_back({disk.device, absolute, chain.size()});
  }
  // Our nodes under them, from the lowest: QEMU refuses for those that are in use.
  VMSIEVE_ASSIGN(const VmChains chains, VmChains::read(*qmp, vm.process.working_directory));
  for (int turn = 0; turn < 2; ++turn) {
    for (const BlockNode& node : chains.nodes()) {
      if (node.name.starts_with("vmsieve-"))
        (void)qmp->execute("blockdev-del", Json{{"node-name", node.name}}, kCommandPatience);
    }
  }
  return flattened;
}

}  // namespace vmsieve
