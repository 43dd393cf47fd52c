// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/disks/disk_needs.h"

#include <algorithm>

#include "vmsieve/disks/image_file.h"
#include "vmsieve/disks/vm_chain.h"

namespace vmsieve::tidying {

bool contains(const std::vector<std::string>& paths, const std::string& path) {
  return std::ranges::any_of(paths, [&](const std::string& one) { return same_file(one, path); });
}

void add(std::vector<std::string>& paths, const std::string& path) {
  if (!contains(paths, path)) paths.push_back(path);
}

void take_out(std::vector<std::string>& paths, const std::string& path) {
  std::erase_if(paths, [&](const std::string& one) { return same_file(one, path); });
}

Error waiting(std::string why) { return {ErrorKind::kBusy, std::move(why)}; }

bool is_abandoned(const DiskRecord& record, const std::string& file) {
  return std::ranges::any_of(record.abandoned,
                             [&](const PrintedFile& one) { return same_file(one.path, file); });
}

void DiskNeeds::read(const Store::DiskRecords& ids) {
  for (const std::string& id : ids.checkpoints) read(id, records_);
  for (const std::string& id : ids.forsaken) read(id, forsaken_);
}

void DiskNeeds::read(const std::string& id, std::vector<DiskRecord>& into) {
  const auto text = store_.read_disks(id);
  auto record = text.ok() ? decode_disks(*text) : Result<DiskRecord>{text.error()};
  if (record.ok()) {
    into.push_back(std::move(*record));
  } else {
    unreadable_.push_back({id, "", record.error().message()});
  }
}

Result<void> DiskNeeds::read_new() {
  VMSIEVE_ASSIGN(const Store::DiskRecords ids, store_.disk_records());
  for (const std::string& id : ids.checkpoints) {
    const auto is_it = [&](const DiskRecord& record) { return record.checkpoint == id; };
    if (std::ranges::any_of(records_, is_it)) continue;
    const std::size_t before = unreadable_.size();
    read(id, records_);
    if (unreadable_.size() != before) return waiting("the record of a checkpoint's disks cannot be read");
  }
  return {};
}

Result<void> DiskNeeds::change(DiskRecord& record, const std::function<void(DiskRecord&)>& make) {
  return store_.change_disks(record.checkpoint, [&](const std::string& text) -> Result<std::string> {
    VMSIEVE_ASSIGN(DiskRecord now, decode_disks(text));
    make(now);
    const std::string changed = encode_disks(now);
    VMSIEVE_ASSIGN(record, decode_disks(changed));  // what nobody could read is not written
    return changed;
  });
}

std::vector<std::string> living_children(const DiskRecord& record) {
  std::vector<std::string> living;
  for (const std::string& child : record.children) {
    if (!is_gone(child)) living.push_back(child);
  }
  return living;
}

std::vector<std::string> DiskNeeds::all_over(const std::string& image) const {
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
      for (const PrintedFile& file : record.abandoned) look_at(file.path);
    }
  }
  return over;
}

std::optional<std::string> DiskNeeds::why_needed(const std::string& image, const std::string& overlay,
                                                 pid_t holder) const {
  for (const DiskRecord& record : records_) {
    if (record.way != DiskWay::kSnapshot) continue;
    for (const SavedDisk& disk : record.disks) {
      if (same_file(disk.image, image))
        return fmt::format("checkpoint {} needs {} as it is", record.checkpoint, image);
    }
  }
  for (const DiskRecord& record : forsaken_) {
    if (contains(record.merged, image))
      return fmt::format("what is in {} is in the image under it too, and it goes", image);
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

bool DiskNeeds::is_under_something(const std::string& image) const {
  for (const DiskRecord& record : records_) {
    const auto is_image = [&](const SavedDisk& disk) { return same_file(disk.image, image); };
    if (record.way == DiskWay::kSnapshot && std::ranges::any_of(record.disks, is_image)) return true;
  }
  return !all_over(image).empty();
}

std::optional<std::string> DiskNeeds::who_may_need(const std::string& file) const {
  const auto is_image = [&](const SavedDisk& disk) { return same_file(disk.image, file); };
  const auto is_below = [&](const SavedDisk& disk) {
    return std::ranges::any_of(disk.below, [&](const PrintedFile& one) { return same_file(one.path, file); });
  };
  for (const DiskRecord& record : records_) {
    if (record.way != DiskWay::kCopy &&
        (std::ranges::any_of(record.disks, is_image) || std::ranges::any_of(record.disks, is_below)))
      return record.checkpoint;
  }
  for (const DiskRecord& record : forsaken_) {
    if (record.way != DiskWay::kCopy && std::ranges::any_of(record.disks, is_image)) return record.checkpoint;
  }
  return std::nullopt;
}

std::vector<std::string> DiskNeeds::left_over(const std::string& file) const {
  std::vector<std::string> found{file};
  for (std::size_t i = 0; i < found.size(); ++i) {
    for (const DiskRecord& record : forsaken_) {
      for (const SavedDisk& disk : record.disks) {
        const bool over = record.way == DiskWay::kSnapshot && same_file(disk.image, found[i]);
        if (over && file_exists(disk.overlay)) add(found, disk.overlay);
      }
    }
  }
  found.erase(found.begin());
  return found;
}

bool DiskNeeds::is_over_overlay(const std::string& image) const {
  const auto chain = chain_of(image);
  if (!chain) return true;
  for (const auto* records : {&records_, &forsaken_}) {
    for (const DiskRecord& record : *records) {
      for (const SavedDisk& disk : record.disks) {
        if (!disk.overlay.empty() && contains({chain->begin() + 1, chain->end()}, disk.overlay)) return true;
      }
    }
  }
  return false;
}

bool DiskNeeds::is_emptied(const std::string& overlay) const {
  for (const DiskRecord& record : forsaken_) {
    if (!contains(record.emptied, overlay)) continue;
    const auto empty = is_empty_image(overlay);
    return empty.ok() && *empty && users_of(overlay).empty();
  }
  return false;
}

bool DiskNeeds::is_superseded(const std::string& overlay) const {
  for (const auto* records : {&records_, &forsaken_}) {
    for (const DiskRecord& record : *records) {
      const auto is_image = [&](const SavedDisk& disk) { return same_file(disk.image, overlay); };
      if (record.way == DiskWay::kSnapshot && std::ranges::any_of(record.disks, is_image)) return true;
    }
  }
  return false;
}

bool DiskNeeds::was_passed_over(const std::string& overlay, const std::string& image) const {
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

Result<void> DiskNeeds::check_known_over(const std::string& overlay, const std::string& in_chain) const {
  std::vector<std::string> all = all_over(overlay);
  if (!in_chain.empty()) add(all, in_chain);
  for (const std::string& over : all) {
    const auto knows = [&](const DiskRecord& record) {
      return contains(record.children, over) || is_abandoned(record, over) ||
             std::ranges::any_of(record.disks, [&](const SavedDisk& disk) {
               return same_file(disk.image, over) || (!disk.overlay.empty() && same_file(disk.overlay, over));
             });
    };
    if (std::ranges::any_of(records_, knows) || std::ranges::any_of(forsaken_, knows)) continue;
    return waiting(fmt::format("{} is over it, and of no checkpoint of this store", over));
  }
  return {};
}

Result<void> DiskNeeds::check_unchanged(const DiskRecord& record, const SavedDisk& disk,
                                        const std::string& image) const {
  if (contains(record.begun, disk.overlay)) return {};
  if (disk.print != FilePrint{} && same_file(disk.image, image)) {
    if (const auto same = check_print(disk); !same)
      return waiting(same.error().kind() == ErrorKind::kIncompatible
                         ? fmt::format("{} was written to since the checkpoint", image)
                         : same.error().message());
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

}  // namespace vmsieve::tidying
