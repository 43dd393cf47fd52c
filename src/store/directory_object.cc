// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/directory_object.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "vmsieve/image/memory_index.h"

namespace vmsieve {
namespace {

/// How much may wait in the page cache, where O_DIRECT does not work.
constexpr u64 kWriteBackWindow = 32 * kMiB;

/// Writes under way at once, and buffers for them: enough for a disk that wants some megabytes at a time,
/// which take a few milliseconds there.
constexpr unsigned kQueueDepth = 32;
constexpr std::size_t kStagingBuffers = 8;

/// Shorter pieces are gathered.
constexpr u64 kLeastInPlaceBytes = 64 * kKiB;

/// Room for a file is asked for in growing steps: a small one must not take much, and be cut again.
constexpr u64 kLeastAllocation = 4 * kMiB;
constexpr u64 kMostAllocation = 256 * kMiB;

/// A file of a sixteenth of the host's memory pushes out of the page cache what others have there.
constexpr u64 kLargeShare = 16;
constexpr u64 kDirectReadBytes = kMaxFrameBytes + 2 * DirectoryObjectWriter::kDirectAlignment;

/// A sweep holds an object for as long as making holes takes.
constexpr u64 kSharedLockTimeoutMs = 30000;

u64 physical_memory_bytes() {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  const long bytes = ::sysconf(_SC_PAGESIZE);
  return pages > 0 && bytes > 0 ? static_cast<u64>(pages) * static_cast<u64>(bytes) : 0;
}

/// Is most of the file in the page cache? Not, if that cannot be told.
bool mostly_cached(int fd, u64 size) {
  constexpr u64 kWindow = 256 * kMiB;
  const u64 page = static_cast<u64>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> resident(kWindow / page);
  u64 cached = 0;
  for (u64 offset = 0; offset < size; offset += kWindow) {
    const u64 bytes = std::min(kWindow, size - offset);
    void* window = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(offset));
    if (window == MAP_FAILED) return false;
    const u64 pages = (bytes + page - 1) / page;
    if (::mincore(window, bytes, resident.data()) == 0) {
      cached += static_cast<u64>(std::count_if(resident.begin(),
                                               resident.begin() + static_cast<std::ptrdiff_t>(pages),
                                               [](unsigned char state) { return (state & 1) != 0; })) *
                page;
    }
    (void)::munmap(window, bytes);
  }
  return cached > size / 2;
}

}  // namespace

Result<std::unique_ptr<ObjectWriter>> DirectoryObjectWriter::make(const Directory& folder,
                                                                  const std::string& name,
                                                                  std::shared_ptr<ObjectProgress> progress) {
  VMSIEVE_ASSIGN(UniqueFd fd, create_file_at(folder, name, O_WRONLY));
  auto* writer = new DirectoryObjectWriter(std::move(fd), folder.path_of(name), std::move(progress));
  std::unique_ptr<ObjectWriter> result{writer};
  VMSIEVE_TRY(writer->take_staging());
  return result;
}

DirectoryObjectWriter::DirectoryObjectWriter(UniqueFd fd, std::string path,
                                             std::shared_ptr<ObjectProgress> progress)
    : fd_(std::move(fd)), path_(std::move(path)), progress_(std::move(progress)) {
  // Asked for after the file was made: open(2) with O_CREAT | O_DIRECT fails where direct I/O does not work,
  // but leaves the file behind.
  const int flags = ::fcntl(fd_.get(), F_GETFL);
  direct_ = flags >= 0 && ::fcntl(fd_.get(), F_SETFL, flags | O_DIRECT) == 0;
  // Through the page cache a write only copies.
  if (!direct_) return;
  if (auto queue = WriteQueue::make(kQueueDepth)) queue_ = std::move(*queue);
}

DirectoryObjectWriter::~DirectoryObjectWriter() { settle_all(); }

/// Makes staging_ one that nobody uses.
Result<void> DirectoryObjectWriter::take_staging() {
  if (staging_) return {};
  if (!spare_.empty()) {
    staging_ = std::move(spare_.back());
    spare_.pop_back();
    return {};
  }
  if (staging_count_ == kStagingBuffers) {
    while (spare_.empty() && settle_one()) {
    }
    VMSIEVE_CHECK(!spare_.empty());
    return take_staging();
  }
  staging_.reset(static_cast<std::byte*>(std::aligned_alloc(kDirectAlignment, kStagingBytes)));
  if (staging_) {
    ++staging_count_;
    return {};
  }
  return fail(
      Error(ErrorKind::kIo, fmt::format("no memory for {} bytes of write buffer", u64{kStagingBytes})));
}

Error DirectoryObjectWriter::fail(Error error) {
  failed_ = error;
  return error;
}

bool DirectoryObjectWriter::stop_direct() {
  if (!direct_) return false;
  const int flags = ::fcntl(fd_.get(), F_GETFL);
  direct_ = flags < 0 || ::fcntl(fd_.get(), F_SETFL, flags & ~O_DIRECT) != 0;
  return !direct_;
}

Result<void> DirectoryObjectWriter::write_out(std::span<const std::byte> bytes, u64 offset) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    // The disk wants more than kDirectAlignment, or a short write left us between two of its blocks.
    if (n < 0 && errno == EINVAL && stop_direct()) continue;
    if (n <= 0) {
      return fail(errno_error(
          n < 0 ? errno : ENOSPC,
          fmt::format("cannot write {} bytes at offset {:#x} of {}", bytes.size(), offset, path_)));
    }
    offset += static_cast<u64>(n);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

// Where it fails, the file grows by being written to.
void DirectoryObjectWriter::allocate_ahead(u64 end) {
  if (end <= allocated_) return;
  const u64 step = std::clamp(round_up(end, kLeastAllocation), kLeastAllocation, kMostAllocation);
  const u64 size = round_up(end, step);
  const u64 from = allocated_;
  allocated_ = size;  // also where it was refused: who is refused once need not ask each time
  (void)::fallocate(fd_.get(), 0, static_cast<off_t>(from), static_cast<off_t>(size - from));
}

/// Hands the next bytes of the file to the kernel, or writes them; `release` is called in any case.
Result<void> DirectoryObjectWriter::begin(std::span<const std::byte> bytes, std::function<void()> release) {
  const u64 offset = written_;
  written_ += bytes.size();
  while (queue_ && direct_) {
    while (auto ended = queue_->take_ended()) end(*ended);
    if (queue_->full()) (void)settle_one();
    if (failed_ || !direct_) break;
    allocate_ahead(written_);
    WriteQueue::Write write{bytes, offset, std::move(release)};
    if (queue_->submit(fd_.get(), write)) return {};
    // It goes without.
    release = std::move(write.release);
    settle_all();
    queue_.reset();
  }
  const auto written = failed_ ? Result<void>{*failed_} : write_out(bytes, offset);
  release();
  VMSIEVE_TRY(written);
  return push_out_of_page_cache();
}

/// What a write has left undone is done here, and told as pwrite(2) tells it.
void DirectoryObjectWriter::end(const WriteQueue::Ended& ended) {
  const auto& [write, result] = ended;
  const std::size_t done = result > 0 ? static_cast<std::size_t>(result) : 0;
  if (done < write.bytes.size() && !failed_) (void)write_out(write.bytes.subspan(done), write.offset + done);
  write.release();
}

bool DirectoryObjectWriter::settle_one() {
  auto ended = queue_ ? queue_->wait_for_ended() : std::nullopt;
  if (ended) end(*ended);
  return ended.has_value();
}

void DirectoryObjectWriter::settle_all() {
  while (settle_one()) {
  }
}

Result<void> DirectoryObjectWriter::flush() {
  const std::span<const std::byte> bytes{staging_.get(), staged_};
  staged_ = 0;
  if (bytes.empty()) return {};
  // A function must be able to be copied, a buffer cannot.
  std::byte* const buffer = staging_.release();
  return begin(bytes, [this, buffer] { spare_.emplace_back(buffer); });
}

Result<void> DirectoryObjectWriter::push_out_of_page_cache() {
  if (direct_) return {};
  // Starts writing what is new, waits for what is a window old, and drops that: memory stays bounded and the
  // fdatasync at the end short.
  (void)::sync_file_range(fd_.get(), static_cast<off_t>(pushed_), 0, SYNC_FILE_RANGE_WRITE);
  if (written_ - pushed_ < kWriteBackWindow) return {};
  const u64 bytes = round_down(written_ - pushed_ - kWriteBackWindow / 2, kDirectAlignment);
  constexpr unsigned kWait = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  // A failure here must not be lost: the kernel reports a failed write-back once per descriptor.
  if (::sync_file_range(fd_.get(), static_cast<off_t>(pushed_), static_cast<off_t>(bytes), kWait) != 0 &&
      errno != ENOSYS && errno != EINVAL && errno != ESPIPE) {
    return fail(errno_error(
        errno, fmt::format("cannot write back {} bytes at offset {:#x} of {}", bytes, pushed_, path_)));
  }
  (void)::posix_fadvise(fd_.get(), static_cast<off_t>(pushed_), static_cast<off_t>(bytes),
                        POSIX_FADV_DONTNEED);
  pushed_ += bytes;
  return {};
}

Result<void> DirectoryObjectWriter::check_open() const {
  if (failed_) return *failed_;
  if (progress_->finished) return make_error(ErrorKind::kUsage, "{} is finished already", path_);
  return {};
}

Result<void> DirectoryObjectWriter::append(std::span<const std::byte> bytes) {
  VMSIEVE_TRY(check_open());
  while (!bytes.empty()) {
    VMSIEVE_TRY(take_staging());
    const u64 part = std::min<u64>(bytes.size(), kStagingBytes - staged_);
    std::memcpy(staging_.get() + staged_, bytes.data(), part);
    staged_ += part;
    bytes = bytes.subspan(part);
    if (staged_ == kStagingBytes) VMSIEVE_TRY(flush());
  }
  return {};
}

Result<void> DirectoryObjectWriter::append_in_place(std::span<const std::byte> bytes,
                                                    std::function<void()> release) {
  const bool fits = queue_ && direct_ && bytes.size() >= kLeastInPlaceBytes &&
                    bytes.size() % kDirectAlignment == 0 && staged_ % kDirectAlignment == 0 &&
                    reinterpret_cast<std::uintptr_t>(bytes.data()) % kDirectAlignment == 0;
  auto ready = fits ? check_open() : append(bytes);
  if (fits && ready) ready = flush();
  if (fits && ready) return begin(bytes, std::move(release));
  release();
  return ready;
}

Result<void> DirectoryObjectWriter::finish() {
  VMSIEVE_TRY(check_open());
  const std::span<const std::byte> rest{staging_.get(), staged_};
  const std::size_t whole = round_down(staged_, kDirectAlignment);
  settle_all();
  if (failed_) return *failed_;
  if (whole > 0) VMSIEVE_TRY(write_out(rest.first(whole), written_));
  if (whole < rest.size()) {
    (void)stop_direct();
    VMSIEVE_TRY(write_out(rest.subspan(whole), written_ + whole));
  }
  written_ += rest.size();
  staged_ = 0;
  if (allocated_ > written_ && ::ftruncate(fd_.get(), static_cast<off_t>(written_)) != 0) {
    return fail(errno_error(errno, fmt::format("cannot cut {} to its {} bytes", path_, written_)));
  }
  if (::fdatasync(fd_.get()) != 0) {
    return fail(errno_error(errno, fmt::format("cannot make {} durable", path_)));
  }
  (void)::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
  progress_->bytes = written_;
  progress_->finished = true;
  fd_.reset();
  staging_.reset();
  spare_.clear();
  return {};
}

Result<std::unique_ptr<ObjectReader>> DirectoryObjectReader::open(const Directory& folder,
                                                                  const std::string& name) {
  VMSIEVE_ASSIGN(UniqueFd fd, open_regular_at(folder, name, O_RDONLY));
  std::string path = folder.path_of(name);
  VMSIEVE_ASSIGN(FileLock file, FileLock::take_shared(std::move(fd), path, kSharedLockTimeoutMs));
  VMSIEVE_ASSIGN(const u64 size, file_size(file.fd(), path));
  return std::unique_ptr<ObjectReader>{new DirectoryObjectReader(std::move(file), std::move(path), size)};
}

Result<void> DirectoryObjectReader::read(u64 offset, std::span<std::byte> out) const {
  if (offset > size_ || out.size() > size_ - offset) {
    return make_error(ErrorKind::kDamaged, "{} has {:#x} bytes, {:#x} bytes at offset {:#x} were expected",
                      path_, size_, out.size(), offset);
  }
  return direct_ ? read_direct(offset, out) : pread_exact(file_.fd(), out, offset, path_);
}

void DirectoryObjectReader::expect_one_pass() const {
  if (direct_ || size_ < physical_memory_bytes() / kLargeShare || mostly_cached(file_.fd(), size_)) return;
  const int flags = ::fcntl(file_.fd(), F_GETFL);
  direct_ = flags >= 0 && ::fcntl(file_.fd(), F_SETFL, flags | O_DIRECT) == 0;
}

/// The disk wants more than kDirectAlignment.
Result<void> DirectoryObjectReader::read_without_direct(u64 offset, std::span<std::byte> out) const {
  if (const int flags = ::fcntl(file_.fd(), F_GETFL); flags >= 0)
    (void)::fcntl(file_.fd(), F_SETFL, flags & ~O_DIRECT);
  direct_ = false;
  return pread_exact(file_.fd(), out, offset, path_);
}

Result<void> DirectoryObjectReader::read_direct(u64 offset, std::span<std::byte> out) const {
  constexpr u64 kDirectAlignment = DirectoryObjectWriter::kDirectAlignment;
  // Each thread's own, as long as it lives.
  thread_local const std::unique_ptr<void, decltype(&std::free)> memory{
      std::aligned_alloc(kDirectAlignment, kDirectReadBytes), &std::free};
  auto* const buffer = static_cast<std::byte*>(memory.get());
  if (buffer == nullptr)
    return make_error(ErrorKind::kIo, "no memory for {} bytes of read buffer", kDirectReadBytes);
  while (!out.empty()) {
    const u64 start = round_down(offset, kDirectAlignment);
    const u64 wanted = std::min<u64>(offset - start + out.size(), kDirectReadBytes);
    const ssize_t n =
        ::pread(file_.fd(), buffer, round_up(wanted, kDirectAlignment), static_cast<off_t>(start));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EINVAL) return read_without_direct(offset, out);
    if (n < 0)
      return errno_error(errno,
                         fmt::format("cannot read {} bytes at offset {:#x} of {}", wanted, start, path_));
    const u64 ahead = offset - start;
    if (static_cast<u64>(n) <= ahead) {
      return make_error(ErrorKind::kDamaged, "{} ends at {:#x}, {} bytes more were expected", path_,
                        start + static_cast<u64>(n), out.size());
    }
    const u64 part = std::min<u64>(static_cast<u64>(n) - ahead, out.size());
    std::memcpy(out.data(), buffer + ahead, part);
    offset += part;
    out = out.subspan(part);
  }
  return {};
}

}  // namespace vmsieve
