// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/missing_pages.h"

#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <cerrno>

#include "vmsieve/qemu/userfaultfd_events.h"

namespace vmsieve {

namespace {

/// The kernel asks for another try while the process changes its memory map; one that does nothing else is
/// not waited for any longer.
constexpr int kMostTries = 100000;

// include/uapi/linux/userfaultfd.h
constexpr u64 kFeatureMissingHugetlb = u64{1} << 4;
constexpr u64 kFeatureMissingShared = u64{1} << 5;

/// What the kernel says of a piece of work that it has not done to its end.
Result<void> refusal(int error, u64 address, int& tries) {
  switch (error) {
    case EAGAIN:  // the process is changing its memory map at this moment
    case EINTR:
      if (++tries < kMostTries) {
        ::sched_yield();
        return {};
      }
      return make_error(ErrorKind::kTimeout, "the memory map at {:#x} does not come to rest", address);
    // The process (mm/userfaultfd.c; ENOSPC before Linux 4.20), or the mapping.
    case ESRCH:
    case ENOSPC:
    case ENOENT: return make_error(ErrorKind::kVanished, "the memory at {:#x} has gone", address);
    case EEXIST:
      return make_error(ErrorKind::kDamaged, "there is a page at {:#x} that nobody was to put there",
                        address);
    default: return errno_error(error, fmt::format("cannot place the page at {:#x}", address));
  }
}

}  // namespace

Result<MissingPages> MissingPages::make(UniqueFd userfaultfd) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kFeatureMissingHugetlb | kFeatureMissingShared;
  if (::ioctl(userfaultfd.get(), UFFDIO_API, &api) != 0) {
    if (errno == EINVAL)
      return Error(
          ErrorKind::kUnsupported,
          "this host's kernel cannot bring in shared memory and huge pages on demand (Linux 4.11 can)");
    return errno_error(errno, "cannot set up a userfaultfd");
  }
  return MissingPages(std::move(userfaultfd));
}

Result<void> MissingPages::add(ByteRange range) {
  uffdio_register ask{};
  ask.range = {range.start, range.end - range.start};
  ask.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (::ioctl(fd_.get(), UFFDIO_REGISTER, &ask) != 0) {
    const int error = errno;
    if (error == EINVAL)
      return Error(ErrorKind::kUnsupported, "its memory cannot be brought in on demand (a file on a disk)");
    if (error == EBUSY) return Error(ErrorKind::kBusy, "another userfaultfd has its memory");
    return errno_error(error,
                       fmt::format("cannot register the memory at {:#x}-{:#x}", range.start, range.end));
  }
  ranges_.push_back(range);
  return {};
}

Result<void> MissingPages::place(u64 address, std::span<const std::byte> bytes) const {
  int tries = 0;
  while (!bytes.empty()) {
    uffdio_copy ask{};
    ask.dst = address;
    ask.src = reinterpret_cast<u64>(bytes.data());
    ask.len = bytes.size();
    if (::ioctl(fd_.get(), UFFDIO_COPY, &ask) == 0) return {};
    // `copy` tells how many bytes are in, or is a negative errno.
    const int error = errno;
    const u64 done = ask.copy > 0 ? static_cast<u64>(ask.copy) : 0;
    if (done == 0) VMSIEVE_TRY(refusal(error, address, tries));
    VMSIEVE_CHECK(done <= bytes.size());
    address += done;
    bytes = bytes.subspan(done);
  }
  return {};
}

Result<void> MissingPages::place_zeros(ByteRange range) const {
  const ByteRange all = range;
  int tries = 0;
  while (range.start < range.end) {
    uffdio_zeropage ask{};
    ask.range = {range.start, range.end - range.start};
    if (::ioctl(fd_.get(), UFFDIO_ZEROPAGE, &ask) == 0) return {};
    const int error = errno;
    if (ask.zeropage > 0) {
      range.start += static_cast<u64>(ask.zeropage);
    } else if (error == EEXIST) {
      range.start += kPageSize;
    } else {
      VMSIEVE_TRY(refusal(error, range.start, tries));
    }
  }
  // The kernel woke only those whose page it put in.
  wake(all);
  return {};
}

void MissingPages::wake(ByteRange range) const {
  uffdio_range ask{range.start, range.end - range.start};
  // It fails only when the process is gone.
  ::ioctl(fd_.get(), UFFDIO_WAKE, &ask);
}

Result<std::vector<u64>> MissingPages::wait_for_faults(int timeout_ms) const {
  return wait_for_pages(fd_.get(), timeout_ms);
}

void MissingPages::end() const {
  for (const ByteRange& range : ranges_) {
    uffdio_range ask{range.start, range.end - range.start};
    // It fails only when the process or the mapping is gone. It wakes those who wait.
    ::ioctl(fd_.get(), UFFDIO_UNREGISTER, &ask);
  }
}

}  // namespace vmsieve
