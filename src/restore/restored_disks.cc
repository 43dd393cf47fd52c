// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/restored_disks.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "vmsieve/disks/disk_needs.h"
#include "vmsieve/disks/image_file.h"
#include "vmsieve/disks/qemu_img.h"
#include "vmsieve/qemu/rbd_image.h"
#include "vmsieve/restore/image_check.h"

namespace vmsieve {

namespace {

Result<DiskRecord> read_record(const Store& store, const std::string& id) {
  const auto text = store.read_disks(id);
  if (!text) {
    if (text.error().kind() != ErrorKind::kNotFound) return text.error();
    return make_error(ErrorKind::kDamaged, "checkpoint {} holds disks, but no record of where they are", id);
  }
  VMSIEVE_ASSIGN(DiskRecord record, decode_disks(*text));
  if (record.checkpoint != id)
    return make_error(ErrorKind::kDamaged, "the record of the disks of checkpoint {} is that of {}", id,
                      record.checkpoint);
  return record;
}

Result<void> make_overlay(const DiskRecord& record, const SavedDisk& disk, const std::string& overlay,
                          bool copied_out) {
  if (!disk.source.empty()) {
    VMSIEVE_ASSIGN(const std::string snapshot, rbd_filename(disk.source, disk.snapshot));
    VMSIEVE_TRY(run_qemu_img({"convert", "-q", "-O", "qcow2", snapshot, overlay}));
  } else if (record.way == DiskWay::kInternal) {
    // What a snapshot holds can only be copied out; its blocks do not change while it is there.
    VMSIEVE_TRY(run_qemu_img({"convert", "-q", "-U", "-f", "qcow2", "-O", "qcow2", "-l",
                              "snapshot.name=" + disk.snapshot, disk.image, overlay}));
  } else if (copied_out) {
    VMSIEVE_TRY(run_qemu_img({"convert", "-q", "-f", "qcow2", "-O", "qcow2", disk.image, overlay}));
  } else {
    VMSIEVE_TRY(run_qemu_img({"create", "-q", "-f", "qcow2", "-F",
                              record.way == DiskWay::kCopy ? "qcow2" : disk.format, "-b", disk.image, overlay,
                              std::to_string(disk.virtual_bytes)}));
  }
  sync_folder_of(overlay);
  return {};
}

/// For a guest that takes the saved VM's place.
Result<void> check_saved_vm_has_ended(const DiskRecord& record) {
  for (const SavedDisk& disk : record.disks) {
    // Internal snapshots and copies: the VM goes on in its image.
    const std::string& file = disk.overlay.empty() ? disk.image : disk.overlay;
    if (!file_exists(file)) continue;
    const std::vector<pid_t> users = users_of(file);
    VMSIEVE_ASSIGN(const bool held, is_held_for_writing(file));
    if (users.empty() && !held) continue;
    return make_error(
        ErrorKind::kBusy,
        "{} has {} open: the VM that was saved is still there, and no other can be instead of it",
        users.empty() ? "a process on another host" : fmt::format("process {}", users.front()), file);
  }
  return {};
}

/// What would be given up is the last that the saved VM has written to: no later checkpoint stands on it.
Result<void> check_is_newest(Store& store, const DiskRecord& record) {
  tidying::DiskNeeds needs(store);
  VMSIEVE_ASSIGN(const auto ids, store.disk_records());
  needs.read(ids);
  if (!needs.unreadable().empty())
    return make_error(
        ErrorKind::kDamaged,
        "whether a later checkpoint needs what would be given up cannot be told: checkpoint {}: {}",
        needs.unreadable().front().checkpoint, needs.unreadable().front().reason);
  for (const SavedDisk& disk : record.disks) {
    if (disk.overlay.empty()) continue;
    const auto who = needs.who_may_need(disk.overlay);
    if (!who || std::ranges::find(ids.forsaken, *who) != ids.forsaken.end()) continue;
    return make_error(
        ErrorKind::kIncompatible,
        "the VM was saved again, as checkpoint {}, after checkpoint {}: take the place of what it "
        "was at the newest one, or remove the later ones first",
        *who, record.checkpoint);
  }
  return {};
}

/// The images from which overlays were made are still the checkpoint's: it was not removed meanwhile, and
/// nothing was merged.
Result<bool> is_still(const Store& store, const std::string& id,
                      const std::vector<RestoredDisks::Disk>& disks) {
  VMSIEVE_TRY(store.manifest(id));
  VMSIEVE_ASSIGN(const DiskRecord now, read_record(store, id));
  if (now.way == DiskWay::kCopy) return true;
  return std::equal(
      now.disks.begin(), now.disks.end(), disks.begin(), disks.end(),
      [](const SavedDisk& a, const RestoredDisks::Disk& b) { return a.image == b.saved.image; });
}

}  // namespace

Result<RestoredDisks> RestoredDisks::make(Store& store, const Manifest& manifest,
                                          const RestoredDiskOptions& options, const std::string& number) {
  constexpr int kAttempts = 3;
  for (int attempt = 1;; ++attempt) {
    RestoredDisks restored;
    restored.checkpoint_ = manifest.id;
    restored.temporary_ = options.temporary;
    restored.instead_ = options.instead && !options.temporary;
    if (manifest.disks.empty()) return restored;
    const auto made = restored.make_all(store, manifest.id, options, number);
    // Images that are merged while others are made over them may vanish under those.
    VMSIEVE_ASSIGN(const bool still, is_still(store, manifest.id, restored.disks_));
    if (still || attempt == kAttempts) {
      VMSIEVE_TRY(made);
      return restored;
    }
  }
}

Result<void> RestoredDisks::make_all(Store& store, const std::string& id, const RestoredDiskOptions& options,
                                     const std::string& number) {
  VMSIEVE_ASSIGN(DiskRecord record, read_record(store, id));
  VMSIEVE_TRY(check_images(store, record));
  if (instead_) {
    const auto newest = check_is_newest(store, record);
    if (!newest && !options.or_beside) return newest.error();
    instead_ = newest.ok();
  }
  if (instead_) VMSIEVE_TRY(check_saved_vm_has_ended(record));
  VMSIEVE_ASSIGN(const std::string unique, new_checkpoint_id());
  const std::string mark = number.empty() ? unique.substr(0, 8) : unique.substr(0, 8) + "." + number;
  const auto plan = [&](DiskRecord& now) -> Result<void> {
    std::erase_if(now.children, [](const std::string& child) { return is_gone(child); });
    disks_.clear();
    for (u64 i = 0; i < now.disks.size(); ++i) {
      SavedDisk disk = now.disks[i];
      std::string beside = disk.image;
      if (!disk.source.empty() && options.folder.empty())
        return make_error(
            ErrorKind::kUsage,
            "the disk {} is in no folder: say with --disk-folder where the restored guest's goes",
            disk.image);
      if (now.way == DiskWay::kCopy) {
        // Not into the store, which is for checkpoints alone.
        VMSIEVE_ASSIGN(disk.image, store.object_path(id, disk_object(i)));
      }
      const std::string overlay =
          overlay_path(beside, options.folder, id, i == 0 ? mark : fmt::format("{}.{}", mark, i));
      now.children.push_back(overlay);
      disks_.push_back({std::move(disk), overlay});
    }
    return {};
  };
  // Noted before they are made: where others look for what is over an image. Temporary ones too, until QEMU
  // has them open.
  const auto noted = store.change_disks(id, [&](const std::string& text) -> Result<std::string> {
    VMSIEVE_ASSIGN(record, decode_disks(text));
    VMSIEVE_TRY(plan(record));
    return encode_disks(record);
  });
  if (!noted) return noted.error();
  for (u64 i = 0; i < disks_.size(); ++i) {
    const Disk& disk = disks_[i];
    VMSIEVE_TRY(
        make_overlay(record, disk.saved, disk.overlay, options.for_another && record.way == DiskWay::kCopy));
    // A copy's image may be gone; libvirt gives to its user what it opens.
    const std::string& image = record.disks[i].image;
    if (options.for_another && file_exists(image)) VMSIEVE_TRY(give_to_owner_of(image, disk.overlay));
  }
  return {};
}

RestoredDisks::RestoredDisks(RestoredDisks&& other) noexcept
    : disks_(std::exchange(other.disks_, {})),
      abandoned_(std::move(other.abandoned_)),
      checkpoint_(std::move(other.checkpoint_)),
      temporary_(other.temporary_),
      instead_(other.instead_),
      kept_(other.kept_) {}

RestoredDisks::~RestoredDisks() {
  if (kept_) return;
  for (const Disk& disk : disks_) (void)::unlink(disk.overlay.c_str());
}

std::vector<std::string> RestoredDisks::overlays() const {
  std::vector<std::string> overlays;
  for (const Disk& disk : disks_) overlays.push_back(disk.overlay);
  return overlays;
}

Result<void> RestoredDisks::keep(Store& store) {
  kept_ = !temporary_;
  if (!instead_ || disks_.empty()) return {};
  tidying::DiskNeeds needs(store);
  VMSIEVE_ASSIGN(const auto ids, store.disk_records());
  needs.read(ids);
  return store.change_disks(checkpoint_, [&](const std::string& text) -> Result<std::string> {
    VMSIEVE_ASSIGN(DiskRecord now, decode_disks(text));
    if (now.way != DiskWay::kSnapshot || now.disks.size() != disks_.size()) return text;
    for (std::size_t i = 0; i < disks_.size(); ++i) {
      const std::string& overlay = disks_[i].overlay;
      const std::string old = std::exchange(now.disks[i].overlay, overlay);
      std::erase(now.children, overlay);
      if (!file_exists(old)) continue;
      std::vector<std::string> given_up = needs.left_over(old);
      given_up.insert(given_up.begin(), old);
      for (const std::string& path : given_up) {
        VMSIEVE_ASSIGN(const FilePrint print, print_of(path));
        now.abandoned.push_back({path, print});
      }
    }
    std::erase_if(now.abandoned, [](const PrintedFile& file) { return is_gone(file.path); });
    abandoned_.clear();
    for (const PrintedFile& file : now.abandoned) abandoned_.push_back(file.path);
    return encode_disks(now);
  });
}

Result<void> RestoredDisks::put_into(QemuCommandLine& line, const std::string& working_directory) const {
  for (const Disk& disk : disks_) {
    if (line.replace_image(disk.saved.chain, disk.overlay, working_directory)) continue;
    return make_error(ErrorKind::kIncompatible,
                      "the recorded QEMU command line does not name the image of the disk {} ({}): make the "
                      "disk by hand from {}, and use --disks-as-they-are with --set",
                      disk.saved.device.empty() ? disk.saved.qdev : disk.saved.device,
                      disk.saved.chain.empty() ? disk.saved.image : disk.saved.chain.front(),
                      disk.saved.image);
  }
  return {};
}

}  // namespace vmsieve
