// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/catalog.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <set>
#include <span>

#include "vmsieve/base/endian.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/varint.h"
#include "vmsieve/store/directory_store.h"

namespace vmsieve {
namespace {

using namespace directory_store;

constexpr std::string_view kFirstLine = "vmsieve-catalog 1\n";
constexpr u64 kMaxCatalogBytes = 64 * kMiB;
constexpr u64 kMaxObjects = 1024;
constexpr u64 kIdBytes = 16;
constexpr u64 kNs = 1'000'000'000;
constexpr u64 kAgedNs = 3 * kNs;

constexpr u64 kSettled = 1;

class Encoder {
 public:
  void number(u64 value) {
    std::array<std::byte, kMaxVarintBytes> buffer{};
    out_.insert(out_.end(), buffer.data(), write_varint(buffer.data(), value));
  }
  void bytes(std::string_view text) { append_bytes(out_, as_byte_span(text)); }
  void text(std::string_view text) {
    number(text.size());
    bytes(text);
  }
  void stamp(const FileStamp& stamp) {
    for (const u64 value : {stamp.inode, stamp.bytes, stamp.modified_ns, stamp.changed_ns}) number(value);
  }
  const std::vector<std::byte>& out() const { return out_; }

 private:
  std::vector<std::byte> out_;
};

/// Gives zeros and empty texts from the first fault on; ask failed() in the end.
class Decoder {
 public:
  explicit Decoder(std::span<const std::byte> bytes) : rest_(bytes) {}

  u64 number() {
    const auto value = failed_ ? std::nullopt : read_varint(rest_);
    if (!value) failed_ = true;
    return value.value_or(0);
  }
  std::string bytes(u64 size) {
    if (failed_ || size > rest_.size()) {
      failed_ = true;
      return {};
    }
    const auto taken = rest_.first(size);
    rest_ = rest_.subspan(size);
    std::string text(size, '\0');
    std::ranges::transform(taken, text.begin(), [](std::byte b) { return static_cast<char>(b); });
    return text;
  }
  std::string text() { return bytes(number()); }
  FileStamp stamp() {
    FileStamp stamp;
    for (u64* value : {&stamp.inode, &stamp.bytes, &stamp.modified_ns, &stamp.changed_ns}) *value = number();
    return stamp;
  }
  void fail() { failed_ = true; }
  bool failed() const { return failed_; }
  bool at_end() const { return rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
  bool failed_ = false;
};

void encode_entry(Encoder& out, const std::string& id, const Catalog::Entry& entry) {
  const CheckpointSummary& summary = entry.summary;
  out.bytes(id);
  out.stamp(entry.folder);
  out.stamp(entry.manifest);
  out.number(entry.settled ? kSettled : 0);
  out.number(entry.objects.size());
  for (const ObjectRecord& object : entry.objects) {
    out.text(object.name);
    out.number(object.bytes);
  }
  for (const std::string* text :
       {&summary.created, &summary.mode, &summary.parent, &summary.vm_name, &summary.kernel})
    out.text(*text);
  for (const u64 number : {std::bit_cast<u64>(summary.pause_ms), summary.guest_bytes, summary.stored_bytes})
    out.number(number);
}

void decode_entry(Decoder& in, Catalog& catalog) {
  Catalog::Entry entry;
  CheckpointSummary& summary = entry.summary;
  summary.id = in.bytes(kIdBytes);
  if (!is_checkpoint_id(summary.id)) in.fail();
  if (!catalog.entries.empty() && summary.id <= catalog.entries.rbegin()->first) in.fail();
  entry.folder = in.stamp();
  entry.manifest = in.stamp();
  const u64 flags = in.number();
  if ((flags & ~kSettled) != 0) in.fail();
  entry.settled = flags == kSettled;
  u64 objects = in.number();
  if (objects > kMaxObjects) in.fail();
  std::set<std::string> names;
  for (; objects > 0 && !in.failed(); --objects) {
    ObjectRecord object;
    object.name = in.text();
    if (!is_object_name(object.name) || !names.insert(object.name).second) in.fail();
    object.bytes = in.number();
    entry.objects.push_back(std::move(object));
  }
  for (std::string* text :
       {&summary.created, &summary.mode, &summary.parent, &summary.vm_name, &summary.kernel})
    *text = in.text();
  summary.pause_ms = std::bit_cast<double>(in.number());
  summary.guest_bytes = in.number();
  summary.stored_bytes = in.number();
  if (!in.failed()) catalog.entries.emplace_hint(catalog.entries.end(), summary.id, std::move(entry));
}

u64 nanoseconds(const struct timespec& time) {
  // Before 1970 there are none: 0 never looks younger than it is.
  if (time.tv_sec < 0) return 0;
  return static_cast<u64>(time.tv_sec) * kNs + static_cast<u64>(time.tv_nsec);
}

u64 now_ns() {
  struct timespec now {};
  (void)::clock_gettime(CLOCK_REALTIME, &now);
  return nanoseconds(now);
}

/// Of `path` below `parent`, which must be of that type; symbolic links are of none that is asked for.
std::optional<FileStamp> stamp_at(const Directory& parent, const std::string& path, mode_t type) {
  struct stat info {};
  if (::fstatat(parent.fd.get(), path.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) return std::nullopt;
  if ((info.st_mode & S_IFMT) != type) return std::nullopt;
  return FileStamp{.inode = static_cast<u64>(info.st_ino),
                   .bytes = static_cast<u64>(info.st_size),
                   .modified_ns = nanoseconds(info.st_mtim),
                   .changed_ns = nanoseconds(info.st_ctim)};
}

}  // namespace

bool FileStamp::has_aged(u64 now_ns) const {
  const u64 newest = std::max(modified_ns, changed_ns);
  return newest <= now_ns && now_ns - newest >= kAgedNs;
}

std::string Catalog::encode() const {
  Encoder out;
  out.number(entries.size());
  for (const auto& [id, entry] : entries) encode_entry(out, id, entry);
  std::string text{kFirstLine};
  text += fmt::format("{:016x}\n", checksum(out.out()));
  for (const std::byte b : out.out()) text.push_back(static_cast<char>(b));
  return text;
}

std::optional<Catalog> Catalog::decode(std::string_view text) {
  constexpr std::size_t kHeaderBytes = kFirstLine.size() + 16 + 1;
  if (text.size() < kHeaderBytes || !text.starts_with(kFirstLine)) return std::nullopt;
  const std::string_view body = text.substr(kHeaderBytes);
  if (text.substr(kFirstLine.size(), 17) != fmt::format("{:016x}\n", checksum(as_byte_span(body))))
    return std::nullopt;
  Decoder in{as_byte_span(body)};
  Catalog catalog;
  for (u64 count = in.number(); count > 0 && !in.failed(); --count) decode_entry(in, catalog);
  if (in.failed() || !in.at_end()) return std::nullopt;
  return catalog;
}

Catalog Catalog::read(const Directory& root) {
  const auto text = read_small_file_at(root, kCatalog, kMaxCatalogBytes);
  return text.ok() ? decode(*text).value_or(Catalog{}) : Catalog{};
}

Result<void> Catalog::write(const Directory& root) const {
  const std::string text = encode();
  if (text.size() > kMaxCatalogBytes)
    return make_error(ErrorKind::kUnsupported, "a catalog of {} bytes would not be read again", text.size());
  VMSIEVE_TRY(unlink_at(root, kCatalogTemporary));
  VMSIEVE_ASSIGN(const UniqueFd fd, create_file_at(root, kCatalogTemporary, O_WRONLY));
  auto written = write_all(fd.get(), as_byte_span(text), root.path_of(kCatalogTemporary));
  if (written.ok() && ::renameat(root.fd.get(), kCatalogTemporary, root.fd.get(), kCatalog) != 0)
    written = errno_error(errno, fmt::format("cannot rename {}", root.path_of(kCatalogTemporary)));
  if (!written.ok()) (void)unlink_at(root, kCatalogTemporary);
  return written;
}

const Catalog::Entry* Catalog::unchanged(const Directory& checkpoints, const std::string& id) const {
  const auto found = entries.find(id);
  if (found == entries.end() || stamp_at(checkpoints, id, S_IFDIR) != found->second.folder) return nullptr;
  return &found->second;
}

const Catalog::Entry* Catalog::current(const Directory& checkpoints, const std::string& id) const {
  const Entry* entry = unchanged(checkpoints, id);
  if (entry == nullptr) return nullptr;
  if (stamp_at(checkpoints, fmt::format("{}/{}", id, kManifest), S_IFREG) != entry->manifest) return nullptr;
  const bool whole = std::ranges::all_of(entry->objects, [&](const ObjectRecord& object) {
    const auto stamp = stamp_at(checkpoints, fmt::format("{}/{}", id, object.name), S_IFREG);
    return stamp && stamp->bytes == object.bytes;
  });
  return whole ? entry : nullptr;
}

std::optional<Catalog::Entry> stamped_entry(const Directory& checkpoints, const std::string& id) {
  const u64 now = now_ns();
  const auto folder = stamp_at(checkpoints, id, S_IFDIR);
  if (!folder || !folder->has_aged(now)) return std::nullopt;
  const auto manifest = stamp_at(checkpoints, fmt::format("{}/{}", id, kManifest), S_IFREG);
  if (!manifest || !manifest->has_aged(now)) return std::nullopt;
  Catalog::Entry entry;
  entry.folder = *folder;
  entry.manifest = *manifest;
  return entry;
}

}  // namespace vmsieve
