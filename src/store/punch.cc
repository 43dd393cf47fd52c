// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <optional>
#include <set>

#include "vmsieve/store/checkpoint_reader.h"
#include "vmsieve/store/directory_store.h"
#include "vmsieve/store/retired.h"

namespace vmsieve::directory_store {
namespace {

/// What a hole can be made of; file systems with larger blocks write zeros around it.
constexpr u64 kBlockBytes = 4096;
constexpr u64 kMaxRecordBytes = kMiB;
constexpr std::string_view kRecordHeader = "vmsieve-punched 1\n";

/// Bytes [begin, end) of an object.
struct ByteRange {
  u64 begin;
  u64 end;
};

/// What is known of a retired memory object that has something to give.
struct Retired {
  std::vector<ByteRange> needed;  ///< ascending, none touches another
  u64 frames_end = 0;             ///< where its index starts
};

/// Sorts the ranges and joins those that overlap or touch.
void join(std::vector<ByteRange>& ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const ByteRange& a, const ByteRange& b) { return a.begin < b.begin; });
  std::size_t count = 0;
  for (const ByteRange& range : ranges) {
    if (count != 0 && range.begin <= ranges[count - 1].end) {
      ranges[count - 1].end = std::max(ranges[count - 1].end, range.end);
    } else {
      ranges[count++] = range;
    }
  }
  ranges.resize(count);
}

/// The whole blocks between header and index in which no byte is needed.
std::vector<ByteRange> unneeded_blocks(const Retired& retired) {
  std::vector<ByteRange> blocks;
  u64 at = kMemoryHeaderBytes;
  const auto add_up_to = [&](u64 end) {
    const ByteRange whole{round_up(at, kBlockBytes), round_down(end, kBlockBytes)};
    if (whole.begin < whole.end) blocks.push_back(whole);
  };
  for (const ByteRange& range : retired.needed) {
    add_up_to(range.begin);
    at = range.end;
  }
  add_up_to(retired.frames_end);
  return blocks;
}

std::string record_of(const std::vector<std::string>& dependents) {
  return fmt::format("{}{}\n", kRecordHeader, fmt::join(dependents, "\n"));
}

/// Is every checkpoint in the record still a dependent? Then nothing has become unneeded since.
bool all_is_taken(const Directory& folder, const std::vector<std::string>& dependents) {
  const auto text = read_small_file_at(folder, kPunched, kMaxRecordBytes);
  if (!text.ok() || !text->starts_with(kRecordHeader)) return false;
  std::vector<std::string> recorded;
  for (std::size_t at = kRecordHeader.size(); at < text->size(); at += recorded.back().size() + 1) {
    recorded.push_back(text->substr(at, text->find('\n', at) - at));
  }
  return !recorded.empty() && *text == record_of(recorded) &&
         std::includes(dependents.begin(), dependents.end(), recorded.begin(), recorded.end());
}

/// The exclusive lock on a memory object; not held when somebody reads it.
Result<FileLock> lock_memory(const Directory& folder) {
  VMSIEVE_ASSIGN(UniqueFd fd, open_regular_at(folder, kMemory, O_RDWR));
  return FileLock::try_take(std::move(fd), folder.path_of(kMemory));
}

/// Makes a hole; false where the file system has none.
Result<bool> make_hole(int fd, const ByteRange& range, const std::string& path) {
  int result = 0;
  do {
    result = ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(range.begin),
                         static_cast<off_t>(range.end - range.begin));
  } while (result != 0 && errno == EINTR);
  if (result == 0) return true;
  if (errno == EOPNOTSUPP || errno == ENOSYS) return false;
  return errno_error(errno, fmt::format("cannot give back {} bytes at offset {:#x} of {}",
                                        range.end - range.begin, range.begin, path));
}

/// Steps 4 and 5 of the format's "Taking bytes".
Result<void> punch(const Directory& checkpoints, const std::string& id, const Retired& retired,
                   const std::vector<std::string>& dependents) {
  VMSIEVE_ASSIGN(const Directory folder, open_directory_at(checkpoints, id));
  const std::string path = folder.path_of(kMemory);
  {
    VMSIEVE_ASSIGN(const FileLock memory, lock_memory(folder));
    if (!memory.held()) return {};
    for (const ByteRange& range : unneeded_blocks(retired)) {
      VMSIEVE_ASSIGN(const bool made, make_hole(memory.fd(), range, path));
      if (!made) break;
    }
    if (::fdatasync(memory.fd()) != 0) {
      return errno_error(errno, fmt::format("cannot make {} durable", path));
    }
  }
  return publish_file_at(folder, kPunchedTemporary, kPunched, record_of(dependents));
}

/// Adds what this checkpoint needs of the objects in `work`.
void add_needed(const CheckpointReader& reader, std::map<std::string, Retired>& work) {
  const std::vector<std::string>& ancestors = reader.index().ancestors;
  std::vector<Retired*> objects(ancestors.size(), nullptr);
  for (std::size_t i = 0; i < ancestors.size(); ++i) {
    const auto found = work.find(ancestors[i]);
    if (found == work.end()) continue;
    objects[i] = &found->second;
    found->second.frames_end = reader.frames_end(i + 1);
  }
  for (const Frame& frame : reader.index().frames) {
    if (frame.object == 0 || objects[frame.object - 1] == nullptr) continue;
    objects[frame.object - 1]->needed.push_back({frame.offset, frame.offset + frame.stored_bytes});
  }
  // After each checkpoint: most name the same frames as the one before.
  for (Retired* object : objects) {
    if (object != nullptr) join(object->needed);
  }
}

}  // namespace

Result<void> take_unneeded_bytes(const Store& store, const Directory& checkpoints,
                                 const std::vector<std::string>& retired, const Dependents& dependents) {
  if (!dependents.complete()) return {};
  std::map<std::string, Retired> work;
  std::set<std::string> to_read;
  std::optional<Error> first_error;
  for (const std::string& id : retired) {
    const std::vector<std::string>& readers = dependents.of(id);
    const auto folder = open_directory_at(checkpoints, id);
    if (readers.empty() || !folder.ok() || all_is_taken(*folder, readers)) continue;
    // Only a look: reading the indexes takes shared locks on the same files.
    const auto free = lock_memory(*folder);
    if (!free.ok() && !first_error) first_error = free.error();
    if (!free.ok() || !free->held()) continue;
    work.try_emplace(id);
    to_read.insert(readers.begin(), readers.end());
  }
  for (const std::string& id : to_read) {
    const auto reader = CheckpointReader::open(store, id);
    if (reader.ok()) {
      add_needed(**reader, work);
      continue;
    }
    // It may need anything of what its manifest names. That it is damaged others will say.
    std::erase_if(work, [&](const auto& entry) {
      const std::vector<std::string>& readers = dependents.of(entry.first);
      return std::binary_search(readers.begin(), readers.end(), id);
    });
  }
  for (const auto& [id, object] : work) {
    const auto punched = punch(checkpoints, id, object, dependents.of(id));
    if (!punched.ok() && !first_error) first_error = punched.error();
  }
  if (first_error) return *first_error;
  return {};
}

}  // namespace vmsieve::directory_store
