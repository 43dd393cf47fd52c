// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/image_check.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "vmsieve/disks/image_file.h"
#include "vmsieve/disks/vm_chain.h"

namespace vmsieve {

namespace {

Result<void> check_presence(const std::string& image, const std::string& over) {
  if (file_exists(image)) return {};
  return make_error(ErrorKind::kNotFound, "the disk image {}{} is not there: put it there", image,
                    over.empty() ? "" : fmt::format(", which {} is over,", over));
}

Result<void> check_nobody_writes(const std::string& image) {
  VMSIEVE_ASSIGN(const bool held, is_held_for_writing(image));
  if (!held) return {};
  const auto users = users_of(image);
  return make_error(ErrorKind::kBusy, "the disk image {} is in use: {} may write to it", image,
                    users.empty() ? "a process" : fmt::format("process {}", users.front()));
}

bool names(const std::vector<std::string>& paths, const std::string& path) {
  return std::ranges::any_of(paths, [&](const std::string& one) { return same_file(one, path); });
}

class ImageCheck {
 public:
  explicit ImageCheck(const Store& store) : store_(store) {}

  Result<void> check(const DiskRecord& record, const SavedDisk& disk) {
    // A snapshot in a cluster is as it was; that it is there shows when it is opened.
    if (!disk.source.empty()) return {};
    VMSIEVE_TRY(check_presence(disk.image, ""));
    // With a snapshot inside it, the VM may go on with it.
    if (record.way != DiskWay::kInternal) {
      VMSIEVE_TRY(check_nobody_writes(disk.image));
      VMSIEVE_TRY(check_print(disk));
    }
    std::string over = disk.image;
    for (std::size_t files = 1;; ++files) {
      VMSIEVE_ASSIGN(const auto file, backing_of(over));
      if (!file) return {};
      if (files == kLongestChain)
        return make_error(ErrorKind::kDamaged, "the chain of backing files of {} does not end", disk.image);
      VMSIEVE_TRY(check_presence(*file, over));
      VMSIEVE_TRY(check_nobody_writes(*file));
      if (const auto print = print_at_checkpoint(disk, *file, over)) VMSIEVE_TRY(check_print(*file, *print));
      over = *file;
    }
  }

 private:
  /// None: it need not be as it was, or nobody knows how.
  std::optional<FilePrint> print_at_checkpoint(const SavedDisk& disk, const std::string& file,
                                               const std::string& over) {
    if (is_being_merged(over)) return std::nullopt;
    const auto it =
        std::ranges::find_if(disk.below, [&](const PrintedFile& one) { return same_file(one.path, file); });
    if (it != disk.below.end()) {
      // Who merged a file beside it has not noted that yet, or is of another store.
      const std::string& once_over = it == disk.below.begin() ? disk.image : (it - 1)->path;
      if (is_merged(once_over) || (it + 1 != disk.below.end() && is_merged((it + 1)->path)))
        return std::nullopt;
    }
    // The one that says from when on it was not to change: it may have changed before this checkpoint.
    if (const DiskRecord* const maker = record_for(over)) {
      const bool restored = names(maker->children, over);
      for (const SavedDisk& one : maker->disks) {
        const bool its = restored || (!one.overlay.empty() && same_file(one.overlay, over));
        if (its && one.print != FilePrint{} && same_file(one.image, file)) return one.print;
      }
    }
    if (it == disk.below.end()) return std::nullopt;
    return it->print;
  }

  bool is_being_merged(const std::string& overlay) {
    const DiskRecord* const record = record_for(overlay);
    return record != nullptr && names(record->begun, overlay);
  }

  bool is_merged(const std::string& overlay) {
    return !checkpoint_in_name(overlay).empty() && (is_gone(overlay) || is_being_merged(overlay));
  }

  /// Of the checkpoint for which a file was made, be it one no more; nullptr: this store knows nothing of it.
  const DiskRecord* record_for(const std::string& overlay) {
    const std::string id = checkpoint_in_name(overlay);
    if (id.empty()) return nullptr;
    auto it = records_.find(id);
    if (it == records_.end()) {
      std::optional<DiskRecord> read;
      const auto text = store_.read_disks(id);
      if (text.ok()) {
        auto record = decode_disks(*text);
        if (record.ok()) read = std::move(*record);
      }
      it = records_.emplace(id, std::move(read)).first;
    }
    return it->second ? &*it->second : nullptr;
  }

  const Store& store_;
  std::map<std::string, std::optional<DiskRecord>> records_;
};

}  // namespace

Result<void> check_images(const Store& store, const DiskRecord& record) {
  if (record.way == DiskWay::kCopy) return {};
  ImageCheck images(store);
  for (const SavedDisk& disk : record.disks) VMSIEVE_TRY(images.check(record, disk));
  return {};
}

Result<void> check_copies(const Store& store, const CheckpointReader& checkpoint, bool wholly) {
  const std::string& id = checkpoint.manifest().id;
  // Sizes are the manifest's: CheckpointReader::open() has seen to it.
  for (const ObjectRecord& object : checkpoint.manifest().objects) {
    if (object.name == "memory" || object.name == "device") continue;
    if (wholly || object.bytes <= kQuicklyRead) {
      VMSIEVE_TRY(checkpoint.verify_object(object));
      continue;
    }
    VMSIEVE_ASSIGN(const std::string path, store.object_path(id, object.name));
    if (const auto header = is_empty_image(path); !header)
      return make_error(ErrorKind::kDamaged, "checkpoint {}, object {}: {}", id, object.name,
                        header.error().message());
  }
  return {};
}

}  // namespace vmsieve
