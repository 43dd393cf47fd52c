// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "vmsieve/image/frame_codec.h"
#include "vmsieve/store/directory_object.h"
#include "vmsieve/store/directory_store.h"
#include "vmsieve/store/retired.h"

namespace vmsieve {
namespace directory_store {
namespace {

class DirectoryCheckpointWriter : public CheckpointWriter {
 public:
  DirectoryCheckpointWriter(std::shared_ptr<const Directory> root, Directory checkpoints, Directory folder,
                            std::string id, FileLock writing)
      : root_(std::move(root)),
        checkpoints_(std::move(checkpoints)),
        folder_(std::move(folder)),
        id_(std::move(id)),
        writing_(std::move(writing)) {}
  ~DirectoryCheckpointWriter() override;

  const std::string& id() const override { return id_; }
  Result<std::unique_ptr<ObjectWriter>> create(std::string_view name) override;
  Result<UniqueFd> create_file(std::string_view name) override;
  Result<ObjectRecord> finish_file(std::string_view name) override;
  Result<void> note_disks(std::string_view text) override;
  Result<void> commit(const Manifest& manifest) override;

 private:
  Result<std::string> encode_checked(const Manifest& manifest) const;
  Result<void> check_ancestors(const Manifest& manifest) const;
  Result<void> check_parent(const Manifest& manifest) const;

  std::shared_ptr<const Directory> root_;
  Directory checkpoints_;
  Directory folder_;
  std::string id_;
  FileLock writing_;
  std::vector<std::shared_ptr<const ObjectProgress>> objects_;
  bool committed_ = false;
};

DirectoryCheckpointWriter::~DirectoryCheckpointWriter() {
  // A destructor has nobody to tell; what cannot be removed now is removed by a later sweep.
  if (!committed_) (void)remove_folder(checkpoints_, id_);
}

Result<std::unique_ptr<ObjectWriter>> DirectoryCheckpointWriter::create(std::string_view name) {
  if (committed_ || !is_object_name(name)) {
    return make_error(ErrorKind::kUsage, "checkpoint {}: cannot make an object of that name now", id_);
  }
  auto progress = std::make_shared<ObjectProgress>();
  progress->name = name;
  VMSIEVE_ASSIGN(auto writer, DirectoryObjectWriter::make(folder_, progress->name, progress));
  objects_.push_back(std::move(progress));
  return writer;
}

Result<UniqueFd> DirectoryCheckpointWriter::create_file(std::string_view name) {
  if (committed_ || !is_object_name(name)) {
    return make_error(ErrorKind::kUsage, "checkpoint {}: cannot make an object of that name now", id_);
  }
  auto progress = std::make_shared<ObjectProgress>();
  progress->name = name;
  VMSIEVE_ASSIGN(UniqueFd fd, create_file_at(folder_, progress->name, O_RDWR));
  objects_.push_back(std::move(progress));
  return fd;
}

Result<ObjectRecord> DirectoryCheckpointWriter::finish_file(std::string_view name) {
  constexpr std::size_t kChunkBytes = 1 << 20;
  const auto object = std::find_if(objects_.begin(), objects_.end(),
                                   [&](const auto& one) { return one->name == name && !one->finished; });
  if (object == objects_.end())
    return make_error(ErrorKind::kUsage, "checkpoint {}: no object {} is being written", id_, name);
  const std::string path = folder_.path_of(name);
  VMSIEVE_ASSIGN(const UniqueFd fd, open_regular_at(folder_, std::string{name}, O_RDONLY));
  if (::fsync(fd.get()) != 0) return errno_error(errno, fmt::format("cannot write {}", path));
  VMSIEVE_ASSIGN(const u64 bytes, file_size(fd.get(), path));
  StreamingChecksum sum;
  std::vector<std::byte> chunk(kChunkBytes);
  for (u64 done = 0; done < bytes; done += chunk.size()) {
    chunk.resize(std::min<u64>(kChunkBytes, bytes - done));
    VMSIEVE_TRY(pread_exact(fd.get(), chunk, done, path));
    sum.update(chunk);
  }
  // It is ours: nobody else looks at it before the checkpoint is committed.
  auto finished = std::make_shared<ObjectProgress>(**object);
  finished->bytes = bytes;
  finished->finished = true;
  *object = finished;
  return ObjectRecord{std::string{name}, bytes, sum.value()};
}

Result<void> DirectoryCheckpointWriter::note_disks(std::string_view text) {
  VMSIEVE_TRY(publish_file_at(folder_, kDisksTemporary, kDisks, text, IfNotDurable::kKeep));
  // What it tells of must be found after a power cut.
  return sync_directory(checkpoints_);
}

/// The manifest's text, if a reader will take it and it is about exactly what was written.
Result<std::string> DirectoryCheckpointWriter::encode_checked(const Manifest& manifest) const {
  if (committed_) return make_error(ErrorKind::kUsage, "checkpoint {} is committed already", id_);
  if (manifest.id != id_) {
    return make_error(ErrorKind::kUsage, "checkpoint {}: the manifest to commit is of '{}'", id_,
                      manifest.id);
  }
  for (const auto& object : objects_) {
    if (!object->finished) {
      return make_error(ErrorKind::kUsage, "checkpoint {}: object {} is not finished", id_, object->name);
    }
    const auto record = std::find_if(manifest.objects.begin(), manifest.objects.end(),
                                     [&object](const ObjectRecord& r) { return r.name == object->name; });
    if (record == manifest.objects.end() || record->bytes != object->bytes) {
      return make_error(ErrorKind::kUsage, "checkpoint {}: object {} of {} bytes is not as the manifest says",
                        id_, object->name, object->bytes);
    }
  }
  if (manifest.objects.size() != objects_.size()) {
    return make_error(ErrorKind::kUsage, "checkpoint {}: the manifest names objects that were not written",
                      id_);
  }
  std::string text = encode_manifest(manifest);
  if (auto decoded = decode_manifest(text); !decoded.ok()) {
    return Error{ErrorKind::kUsage, fmt::format("checkpoint {}: no reader would take the manifest: {}", id_,
                                                decoded.error().message())};
  }
  return text;
}

/// The memory objects of all ancestors are there, those of retired checkpoints too.
Result<void> DirectoryCheckpointWriter::check_ancestors(const Manifest& manifest) const {
  for (const std::string& ancestor : manifest.ancestors) {
    const auto folder = open_checkpoint_folder(*root_, ancestor);
    const auto state = folder.ok() ? folder_state(*folder) : Result<FolderState>{folder.error()};
    const bool known = state.ok() && *state != FolderState::kNeither;
    if (known && regular_size_at(*folder, kMemory).ok()) continue;
    return make_error(ErrorKind::kNotFound,
                      "checkpoint {} cannot be committed: checkpoint {}, which it needs, is gone", id_,
                      ancestor);
  }
  return {};
}

/// The parent is a checkpoint that needs all that this one needs: so the frames that were taken over from its
/// index have been protected until now, and from now on this checkpoint protects them.
Result<void> DirectoryCheckpointWriter::check_parent(const Manifest& manifest) const {
  if (manifest.ancestors.empty()) return {};
  if (manifest.parent.empty()) {
    return make_error(ErrorKind::kUsage, "checkpoint {} cannot be committed: it has ancestors, but no parent",
                      id_);
  }
  const auto folder = open_checkpoint_folder(*root_, manifest.parent);
  const auto parent =
      folder.ok() ? read_manifest(*folder, manifest.parent) : Result<Manifest>{folder.error()};
  if (!parent.ok()) {
    return parent.error().with_context(fmt::format(
        "checkpoint {} cannot be committed: its parent {} is gone or damaged", id_, manifest.parent));
  }
  for (const std::string& ancestor : manifest.ancestors) {
    const auto& known = parent->ancestors;
    if (ancestor == parent->id || std::find(known.begin(), known.end(), ancestor) != known.end()) continue;
    return make_error(ErrorKind::kUsage,
                      "checkpoint {} cannot be committed: it needs checkpoint {}, which its parent {} does "
                      "not need",
                      id_, ancestor, parent->id);
  }
  return {};
}

Result<void> DirectoryCheckpointWriter::commit(const Manifest& manifest) {
  VMSIEVE_ASSIGN(const std::string text, encode_checked(manifest));
  VMSIEVE_ASSIGN(const FileLock held, lock(*root_));
  VMSIEVE_TRY(check_ancestors(manifest));
  VMSIEVE_TRY(check_parent(manifest));
  VMSIEVE_TRY(sync_directory(folder_));
  VMSIEVE_TRY(sync_directory(checkpoints_));
  // ---- every object is durable, and its name too ----
  VMSIEVE_TRY(publish_file_at(folder_, kManifestTemporary, kManifest, text));
  // ---- the checkpoint exists ----
  committed_ = true;
  (void)unlink_at(folder_, kWriting);
  writing_.release();
  return {};
}

/// Makes the lock file in a new folder; on failure the caller removes the folder.
Result<FileLock> make_writing(const Directory& folder) {
  // Read-only: flock(2) wants no more, and the file system may still be remounted read-only.
  VMSIEVE_ASSIGN(UniqueFd fd, create_file_at(folder, kWriting, O_RDONLY));
  VMSIEVE_ASSIGN(FileLock writing, FileLock::try_take(std::move(fd), folder.path_of(kWriting)));
  if (!writing.held())
    return make_error(ErrorKind::kBusy, "{} is locked by another process", folder.path_of(kWriting));
  return writing;
}

}  // namespace

Result<std::unique_ptr<CheckpointWriter>> begin_checkpoint(std::shared_ptr<const Directory> root,
                                                           const std::string& id) {
  VMSIEVE_CHECK(is_checkpoint_id(id));
  // Again, though it was checked when the store was opened: a file system may have been taken away since.
  if (auto marked = check_marker(*root); !marked.ok()) {
    return marked.error().with_context(fmt::format("{} is no store any more", root->path));
  }
  VMSIEVE_ASSIGN(const FileLock held, lock(*root));
  VMSIEVE_ASSIGN(const bool made, make_directory_at(*root, kCheckpoints));
  if (made) VMSIEVE_TRY(sync_directory(*root));
  VMSIEVE_ASSIGN(Directory checkpoints, open_directory_at(*root, kCheckpoints));
  VMSIEVE_ASSIGN(const bool fresh, make_directory_at(checkpoints, id));
  if (!fresh) return make_error(ErrorKind::kBusy, "store {} has a checkpoint {} already", root->path, id);
  auto folder = open_directory_at(checkpoints, id);
  auto writing = folder.ok() ? make_writing(*folder) : Result<FileLock>{folder.error()};
  if (!writing.ok()) {
    (void)remove_folder(checkpoints, id);
    return writing.error();
  }
  return std::unique_ptr<CheckpointWriter>{std::make_unique<DirectoryCheckpointWriter>(
      std::move(root), std::move(checkpoints), std::move(*folder), id, std::move(*writing))};
}

}  // namespace directory_store
}  // namespace vmsieve
