// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/disks/merge.h"

#include <unistd.h>

#include <algorithm>
#include <thread>

#include "vmsieve/disks/image_file.h"
#include "vmsieve/disks/vm_chain.h"

namespace vmsieve::tidying {

Result<void> begin(const Merge& merge, const std::string& image) {
  VMSIEVE_TRY(merge.needs.check_unchanged(merge.record, merge.disk, image));
  return merge.needs.change(merge.record, [&](DiskRecord& now) { add(now.begun, merge.disk.overlay); });
}

Result<void> begin_commit(QmpClient& qmp, const char* command, const QmpClient::Json& arguments) {
  for (int attempt = 1;; ++attempt) {
    const auto begun = qmp.execute(command, arguments, kCommandPatience);
    if (begun.ok()) return {};
    if (begun.error().kind() != ErrorKind::kRefused || attempt == kAttempts) return begun.error();
    std::this_thread::sleep_for(kBetweenAttempts);
  }
}

Result<void> note_renamed(const Merge& merge) {
  std::vector<std::string> renamed;
  for (const std::string& over : merge.needs.all_over(merge.disk.overlay)) {
    const auto is_as_it_was = [&](const SavedDisk& one) {
      return one.print != FilePrint{} && same_file(one.image, over) && check_print(one).ok();
    };
    const auto is_given_up = [&](const PrintedFile& one) {
      return same_file(one.path, over) && check_print(one.path, one.print).ok();
    };
    const auto has = [&](const DiskRecord& other) {
      return std::ranges::any_of(other.disks, is_as_it_was) ||
             std::ranges::any_of(other.abandoned, is_given_up);
    };
    if (std::ranges::any_of(merge.needs.checkpoints(), has) ||
        std::ranges::any_of(merge.needs.forsaken(), has))
      add(renamed, over);
  }
  return merge.needs.change(merge.record, [&](DiskRecord& now) {
    for (const std::string& path : renamed) add(now.renamed, path);
  });
}

namespace {

bool has_below(const DiskRecord& record, const std::string& file) {
  const auto is_it = [&](const PrintedFile& one) { return same_file(one.path, file); };
  return std::ranges::any_of(record.disks,
                             [&](const SavedDisk& disk) { return std::ranges::any_of(disk.below, is_it); });
}

void set_print_below(DiskRecord& record, const std::string& file, const FilePrint& print) {
  for (SavedDisk& disk : record.disks) {
    for (PrintedFile& one : disk.below) {
      if (same_file(one.path, file)) one.print = print;
    }
  }
}

/// In the chains of all checkpoints: the overlay goes, and the image under it has its content.
Result<void> take_out_below(DiskNeeds& needs, const std::string& overlay, const std::string& image) {
  VMSIEVE_ASSIGN(const FilePrint print, print_of(image));
  for (DiskRecord& other : needs.checkpoints()) {
    if (!has_below(other, overlay) && !has_below(other, image)) continue;
    VMSIEVE_TRY(needs.change(other, [&](DiskRecord& now) {
      set_print_below(now, image, print);
      for (SavedDisk& disk : now.disks) {
        std::erase_if(disk.below, [&](const PrintedFile& one) {
          return same_file(one.path, overlay) || same_file(one.path, disk.image);
        });
      }
    }));
  }
  return {};
}

/// Of an image of checkpoints that was changed for a good reason.
Result<void> take_print_anew(DiskNeeds& needs, const std::string& image) {
  VMSIEVE_TRY(sync_file(image));
  VMSIEVE_ASSIGN(const FilePrint print, print_of(image));
  for (auto* records : {&needs.checkpoints(), &needs.forsaken()}) {
    for (DiskRecord& other : *records) {
      const auto is_image = [&](const SavedDisk& one) {
        return one.print != FilePrint{} && same_file(one.image, image);
      };
      // What was below a checkpoint that is gone nobody asks; its record may be gone too.
      const bool below = records == &needs.checkpoints() && has_below(other, image);
      if (std::ranges::none_of(other.disks, is_image) && !below && !is_abandoned(other, image)) continue;
      VMSIEVE_TRY(needs.change(other, [&](DiskRecord& now) {
        for (SavedDisk& one : now.disks) {
          if (is_image(one)) one.print = print;
        }
        set_print_below(now, image, print);
        for (PrintedFile& one : now.abandoned) {
          if (same_file(one.path, image)) one.print = print;
        }
      }));
    }
  }
  return {};
}

}  // namespace

Result<void> take_prints_anew(DiskNeeds& needs, DiskRecord& record) {
  for (const std::string& renamed : std::vector<std::string>(record.renamed))
    VMSIEVE_TRY(take_print_anew(needs, renamed));
  if (record.renamed.empty()) return {};
  return needs.change(record, [](DiskRecord& now) { now.renamed.clear(); });
}

Result<void> mark_merged(const Merge& merge) {
  return merge.needs.change(merge.record, [&](DiskRecord& now) {
    add(now.merged, merge.disk.overlay);
    take_out(now.leaving, merge.disk.overlay);
  });
}

Result<void> remove_merged(const Merge& merge) {
  const std::string& overlay = merge.disk.overlay;
  VMSIEVE_ASSIGN(const auto image, backing_of(overlay));
  if (!image) return waiting("it has lost its backing file");
  VMSIEVE_TRY(take_prints_anew(merge.needs, merge.record));
  // Before the overlay goes: what it held, and the headers that do not name it any more.
  VMSIEVE_TRY(sync_file(*image));
  for (const std::string& over : merge.needs.all_over(*image)) VMSIEVE_TRY(sync_file(over));
  for (DiskRecord& other : merge.needs.checkpoints()) {
    if (other.way != DiskWay::kSnapshot) continue;
    const bool its =
        std::ranges::any_of(other.disks, [&](const SavedDisk& one) { return same_file(one.image, overlay); });
    if (!its) continue;
    VMSIEVE_ASSIGN(const FilePrint print, print_of(*image));
    VMSIEVE_TRY(merge.needs.change(other, [&](DiskRecord& now) {
      if (!living_children(now).empty()) return;
      for (SavedDisk& one : now.disks) {
        if (!same_file(one.image, overlay)) continue;
        one.image = *image;
        one.format = merge.disk.format;
        one.print = print;
      }
    }));
    if (!living_children(other).empty())
      return waiting(
          fmt::format("guests that were restored from checkpoint {} are over it", other.checkpoint));
  }
  const auto over = merge.needs.all_over(overlay);
  if (!over.empty()) return waiting(fmt::format("{} is over it", over.front()));
  if (const auto users = users_of(overlay); !users.empty())
    return waiting(fmt::format("process {} has it open", users.front()));
  VMSIEVE_TRY(take_out_below(merge.needs, overlay, *image));
  if (::unlink(overlay.c_str()) != 0 && errno != ENOENT)
    return errno_error(errno, fmt::format("cannot remove {}", overlay));
  sync_folder_of(overlay);
  return {};
}

}  // namespace vmsieve::tidying
