// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/disks/disk_point.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>

#include "vmsieve/disks/image_file.h"
#include "vmsieve/disks/qemu_img.h"
#include "vmsieve/qemu/qmp_wire.h"

namespace vmsieve {

namespace {

using Json = QmpClient::Json;
using std::chrono::milliseconds;

constexpr milliseconds kBlockTimeout{30000};

std::string resolved(const std::string& path, const std::string& working_directory) {
  const std::filesystem::path whole =
      path.starts_with('/') ? std::filesystem::path(path) : std::filesystem::path(working_directory) / path;
  return whole.lexically_normal().string();
}

Json cache_of(const WritableDisk& disk) { return {{"direct", disk.direct}, {"no-flush", disk.no_flush}}; }

/// A raw node may begin somewhere in its file, or end there (`offset`, `size`): QEMU then tells its options.
bool is_part_of_a_file(const std::string& file) {
  if (!file.starts_with("json:")) return false;
  const Json node = Json::parse(file.begin() + 5, file.end(), nullptr, /*allow_exceptions=*/false);
  return node.is_object() && (node.contains("offset") || node.contains("size"));
}

Result<void> create(QmpClient& qmp, const std::string& job, Json options) {
  VMSIEVE_TRY(
      qmp.execute("blockdev-create", Json{{"job-id", job}, {"options", std::move(options)}}, kBlockTimeout));
  return wait_for_job(qmp, job);
}

}  // namespace

std::string overlay_node(const std::string& checkpoint, u64 number) {
  return fmt::format("vmsieve-{}-{}", checkpoint, number);  // 31 characters at most (QEMU block.c)
}

std::string overlay_file_node(const std::string& checkpoint, u64 number) {
  return overlay_node(checkpoint, number) + "f";
}

Result<void> wait_for_job(QmpClient& qmp, const std::string& job, const ProgressFunction& progress) {
  for (milliseconds pause{1};; pause = std::min(2 * pause, milliseconds{50})) {
    VMSIEVE_ASSIGN(const Json jobs, qmp.execute("query-jobs"));
    const auto it = std::find_if(jobs.begin(), jobs.end(),
                                 [&](const Json& one) { return json_string(one, "id") == job; });
    if (it == jobs.end())
      return make_error(ErrorKind::kRefused, "QEMU has ended the job {} and does not say how", job);
    if (progress)
      progress({"disks", json_u64(*it, "current-progress").value_or(0),
                json_u64(*it, "total-progress").value_or(0)});
    if (json_string(*it, "status") == "concluded") {
      const std::string error = json_string(*it, "error");
      VMSIEVE_TRY(qmp.execute("job-dismiss", Json{{"id", job}}));
      if (error.empty()) return {};
      return Error(ErrorKind::kRefused, error);
    }
    std::this_thread::sleep_for(pause);
  }
}

std::string DiskPoint::node(u64 number) const { return overlay_node(options_.checkpoint, number); }
std::string DiskPoint::job(u64 number) const { return overlay_node(options_.checkpoint, number); }

namespace {

Error no_point_in(const WritableDisk& disk, std::string_view why, std::string_view advice) {
  return make_error(ErrorKind::kUnsupported, "no point in time can be taken of the disk {} ({}): {}; {}",
                    disk.device, disk.file, why, advice);
}

Error no_point_in(const WritableDisk& disk, std::string_view why) {
  return no_point_in(disk, why, "save with --disk none, and care for the disks by other means");
}

}  // namespace

Result<SavedDisk> DiskPoint::describe_in_cluster(SavedDisk saved, const RbdImage& image,
                                                 const WritableDisk& disk) const {
  if (options_.way != DiskWay::kInternal)
    return no_point_in(disk, "it is in no local file",
                       "save with --disk internal: the cluster keeps a snapshot");
  if (options_.libvirt)
    return no_point_in(disk, "it is in no local file, and libvirt knows it by its network");
  if (saved.format != "raw") return no_point_in(disk, "it is a qcow2 image in a cluster");
  if (image.has_secret)
    return no_point_in(disk, "its key is known to this QEMU alone",
                       "give the key in the cluster's keyring, or save with --disk none");
  if (image.is_only_part || image.is_snapshot) return no_point_in(disk, "it is only a part of its image");
  saved.image = image.name;
  saved.source = image.options;
  saved.snapshot = "vmsieve-" + options_.checkpoint;
  saved.chain = {image.name};
  return saved;
}

Result<SavedDisk> DiskPoint::describe(const WritableDisk& disk, u64 number) const {
  const auto unless = [&](std::string_view why, std::string_view advice) {
    return no_point_in(disk, why, advice);
  };
  const auto cannot = [&](std::string_view why) { return no_point_in(disk, why); };
  SavedDisk saved{.device = disk.drive,
                  .qdev = disk.qdev,
                  .image = "",
                  .format = disk.driver,
                  .virtual_bytes = disk.virtual_bytes,
                  .print = {},
                  .below = {},
                  .overlay = "",
                  .snapshot = "",
                  .chain = {}};
  // A node of a file without a format's over it is the raw content.
  if (disk.driver == "file" || disk.driver == "host_device" || disk.driver == "rbd") saved.format = "raw";
  if (saved.format != "raw" && saved.format != "qcow2")
    return cannot(fmt::format("its topmost node is of the driver {}", disk.driver));
  if (const auto image = rbd_image(disk.file)) return describe_in_cluster(std::move(saved), *image, disk);
  const auto path = image_path(disk.file);
  if (!path) return cannot("it is in no local file");
  if (is_part_of_a_file(disk.file)) return cannot("it is only a part of its file");
  if (disk.encrypted) return cannot("it is encrypted, and the checkpoint would not hold its key");
  saved.image = resolved(*path, options_.working_directory);
  if (options_.way == DiskWay::kInternal) {
    if (disk.driver != "qcow2")
      return unless("only qcow2 images take snapshots in themselves",
                    "save with --disk snapshot, or --disk copy");
    saved.snapshot = "vmsieve-" + options_.checkpoint;
  }
  if (options_.way == DiskWay::kSnapshot) {
    saved.overlay = overlay_path(saved.image, options_.folder, options_.checkpoint, "");
    const auto same = [&](const SavedDisk& other) { return other.overlay == saved.overlay; };
    if (std::ranges::any_of(record_.disks, same))
      saved.overlay = overlay_path(saved.image, options_.folder, options_.checkpoint, std::to_string(number));
    if (options_.folder.empty() && saved.image.starts_with("/dev/"))
      return unless("what is written from now on needs a file", "give a folder for it with --disk-folder");
    if (file_exists(saved.overlay)) return cannot(saved.overlay + " is there already");
  }
  auto chain = chain_of(saved.image);
  // A copy needs no image that we can see.
  if (!chain && options_.way == DiskWay::kCopy) chain = std::vector{saved.image};
  if (!chain && chain.error().kind() == ErrorKind::kNotFound) {
    if (checkpoint_in_name(saved.image).empty() || file_exists(saved.image))
      return Error(ErrorKind::kNotFound,
                   fmt::format("the disk {} ({}): {}: put it back where QEMU has opened it, or save with "
                               "--disk copy",
                               disk.device, disk.file, chain.error().message()));
    return unless("its file has no name any more, as that of a guest that was restored with --disk-temporary",
                  "save with --disk copy, or, if it was moved, put it back");
  }
  if (!chain) return cannot(chain.error().message());
  saved.chain = std::move(*chain);
  for (const std::string& earlier : options_.earlier_chain(saved.image)) {
    if (std::ranges::find(saved.chain, earlier) == saved.chain.end()) saved.chain.push_back(earlier);
  }
  return saved;
}

Result<std::unique_ptr<DiskPoint>> DiskPoint::prepare(QmpClient& qmp, const std::vector<WritableDisk>& disks,
                                                      DiskPointOptions options) {
  std::unique_ptr<DiskPoint> point{new DiskPoint(qmp, std::move(options))};
  DiskRecord& record = point->record_;
  record.checkpoint = point->options_.checkpoint;
  record.way = point->options_.way;
  for (const WritableDisk& disk : disks) {
    VMSIEVE_ASSIGN(SavedDisk saved, point->describe(disk, record.disks.size()));
    record.disks.push_back(std::move(saved));
  }
  VMSIEVE_TRY(point->options_.note(record));
  for (u64 i = 0; i < disks.size(); ++i) {
    const WritableDisk& disk = disks[i];
    const SavedDisk& saved = record.disks[i];
    const auto prepared = [&]() -> Result<void> {
      switch (record.way) {
        case DiskWay::kSnapshot:
          return point->options_.libvirt ? point->prepare_file_for_libvirt(saved)
                                         : point->prepare_overlay(disk, saved, i);
        case DiskWay::kCopy: return point->prepare_copy(disk, saved, i);
        case DiskWay::kInternal: break;
      }
      point->actions_.push_back(
          {{"type", "blockdev-snapshot-internal-sync"},
           {"data", {{"device", disk.drive.empty() ? disk.node : disk.drive}, {"name", saved.snapshot}}}});
      return {};
    }();
    if (!prepared)
      return prepared.error().with_context(fmt::format("the disk {} ({})", disk.device, saved.image));
  }
  if (point->options_.libvirt && record.way == DiskWay::kSnapshot) VMSIEVE_TRY(point->prepare_libvirt());
  return point;
}

/// libvirt's QEMU opens it, as another user.
Result<void> DiskPoint::prepare_file_for_libvirt(const SavedDisk& saved) {
  files_.push_back(saved.overlay);
  // -u: the image is in use.
  VMSIEVE_TRY(run_qemu_img({"create", "-q", "-u", "-f", "qcow2", "-F", saved.format, "-b", saved.image,
                            saved.overlay, std::to_string(saved.virtual_bytes)}));
  VMSIEVE_TRY(give_to_owner_of(saved.image, saved.overlay));
  sync_folder_of(saved.overlay);
  return {};
}

Result<void> DiskPoint::prepare_libvirt() {
  Json disks = Json::array();
  for (const SavedDisk& disk : record_.disks)
    disks.push_back({{"image", disk.image}, {"overlay", disk.overlay}});
  VMSIEVE_ASSIGN(const Json prepared,
                 qmp_.execute("vmsieve-disk-prepare", Json{{"disks", std::move(disks)}}, kBlockTimeout));
  libvirts_snapshot_ = json_string(prepared, "xml");
  return {};
}

Result<void> DiskPoint::prepare_overlay(const WritableDisk& disk, const SavedDisk& saved, u64 number) {
  files_.push_back(saved.overlay);
  VMSIEVE_TRY(create(qmp_, job(number), {{"driver", "file"}, {"filename", saved.overlay}, {"size", 0}}));
  const std::string file_node = overlay_file_node(options_.checkpoint, number);
  VMSIEVE_TRY(qmp_.execute("blockdev-add",
                           Json{{"driver", "file"},
                                {"node-name", file_node},
                                {"filename", saved.overlay},
                                {"cache", cache_of(disk)}},
                           kBlockTimeout));
  nodes_.push_back(file_node);
  VMSIEVE_TRY(create(qmp_, job(number),
                     {{"driver", "qcow2"},
                      {"file", file_node},
                      {"size", saved.virtual_bytes},
                      {"backing-file", saved.image},
                      {"backing-fmt", saved.format}}));
  // Without a backing node: the transaction gives it one (QEMU qapi/block-core.json, blockdev-snapshot).
  Json overlay{{"driver", "qcow2"},  {"node-name", node(number)}, {"file", file_node},
               {"backing", nullptr}, {"cache", cache_of(disk)},   {"discard", "unmap"}};
  if (!disk.detect_zeroes.empty()) overlay["detect-zeroes"] = disk.detect_zeroes;
  VMSIEVE_TRY(qmp_.execute("blockdev-add", overlay, kBlockTimeout));
  nodes_.push_back(node(number));
  sync_folder_of(saved.overlay);
  actions_.push_back(
      {{"type", "blockdev-snapshot"}, {"data", {{"node", disk.node}, {"overlay", node(number)}}}});
  return {};
}

Result<void> DiskPoint::prepare_copy(const WritableDisk& disk, const SavedDisk& saved, u64 number) {
  VMSIEVE_ASSIGN(const UniqueFd file, options_.copy_file(number));
  // As a descriptor: QEMU may be another user's, and see other folders.
  VMSIEVE_ASSIGN(const GivenDescriptor given, give_descriptor(qmp_, file.get(), kBlockTimeout));
  given_.push_back(given);
  const std::string file_node = overlay_file_node(options_.checkpoint, number);
  VMSIEVE_TRY(qmp_.execute("blockdev-add",
                           Json{{"driver", "file"},
                                {"node-name", file_node},
                                {"filename", fmt::format("/dev/fdset/{}", given.set)},
                                {"locking", "off"}},
                           kBlockTimeout));
  nodes_.push_back(file_node);
  VMSIEVE_TRY(
      create(qmp_, job(number), {{"driver", "qcow2"}, {"file", file_node}, {"size", saved.virtual_bytes}}));
  VMSIEVE_TRY(qmp_.execute("blockdev-add",
                           Json{{"driver", "qcow2"},
                                {"node-name", node(number)},
                                {"file", file_node},
                                {"discard", "unmap"},
                                {"detect-zeroes", "unmap"}},
                           kBlockTimeout));
  nodes_.push_back(node(number));
  actions_.push_back({{"type", "blockdev-backup"},
                      {"data",
                       {{"job-id", job(number)},
                        {"device", disk.node},
                        {"target", node(number)},
                        {"sync", "full"},
                        {"auto-dismiss", false}}}});
  return {};
}

Result<Json> DiskPoint::take_all() {
  if (!libvirts_snapshot_.empty())
    return qmp_.execute("vmsieve-disk-snapshot", Json{{"xml", libvirts_snapshot_}}, kBlockTimeout);
  return qmp_.execute("transaction", Json{{"actions", actions_}}, kBlockTimeout);
}

Result<void> DiskPoint::take() {
  if (record_.disks.empty()) return {};
  const auto done = take_all();
  if (done.ok()) {
    taken_ = true;
    return {};
  }
  // Refused as a whole; but one that did not answer may have done it.
  taken_ = done.error().kind() != ErrorKind::kRefused;
  return done.error().with_context("the disks");
}

Result<DiskRecord> DiskPoint::finish(const ProgressFunction& progress) {
  if (record_.way == DiskWay::kCopy) {
    for (u64 i = 0; i < record_.disks.size(); ++i) {
      if (auto copied = wait_for_job(qmp_, job(i), progress); !copied)
        return copied.error().with_context(
            fmt::format("the disk {} cannot be copied", record_.disks[i].image));
    }
    // QEMU writes the last of an image's own tables when it closes it.
    VMSIEVE_TRY(close_nodes());
  } else {
    for (SavedDisk& disk : record_.disks) {
      if (!disk.source.empty()) continue;
      VMSIEVE_TRY(sync_file(disk.image));
      VMSIEVE_ASSIGN(disk.print, print_of(disk.image));
      // It goes on changing.
      if (record_.way == DiskWay::kInternal) disk.print = {};
      VMSIEVE_ASSIGN(const auto chain, chain_of(disk.image));
      for (std::size_t i = 1; i < chain.size(); ++i) {
        VMSIEVE_ASSIGN(const FilePrint print, print_of(chain[i]));
        disk.below.push_back({chain[i], print});
      }
    }
    // It is about the next start only.
    if (!libvirts_snapshot_.empty())
      (void)qmp_.execute("vmsieve-disk-forget-chains", Json::object(), kBlockTimeout);
  }
  VMSIEVE_TRY(options_.note(record_));
  return record_;
}

Result<void> DiskPoint::close_nodes() {
  while (!nodes_.empty()) {
    const std::string name = nodes_.back();
    nodes_.pop_back();
    VMSIEVE_TRY(qmp_.execute("blockdev-del", Json{{"node-name", name}}, kBlockTimeout));
  }
  for (const GivenDescriptor& given : given_) (void)take_back_descriptor(qmp_, given);
  given_.clear();
  return {};
}

DiskPoint::~DiskPoint() {
  const bool overlays_are_used = taken_ && record_.way == DiskWay::kSnapshot;
  if (overlays_are_used) return;
  if (taken_ && record_.way == DiskWay::kCopy && !nodes_.empty()) {
    for (u64 i = 0; i < record_.disks.size(); ++i) {
      if (qmp_.execute("job-cancel", Json{{"id", job(i)}}).ok()) (void)wait_for_job(qmp_, job(i));
    }
  }
  while (!close_nodes().ok()) {
  }
  for (const std::string& file : files_) {
    // libvirt may say that it has failed when QEMU has done it.
    if (!options_.libvirt || users_of(file).empty()) (void)::unlink(file.c_str());
  }
}

}  // namespace vmsieve
