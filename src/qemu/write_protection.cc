// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/write_protection.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <cerrno>

#include "vmsieve/qemu/userfaultfd_events.h"

namespace vmsieve {

namespace {

// include/uapi/linux/userfaultfd.h; spelled out since the headers of older systems lack some.
constexpr u64 kFeatureFlagWp = u64{1} << 0;
constexpr u64 kFeatureSharedAndHuge = u64{1} << 12;
constexpr u64 kFeatureUnpopulated = u64{1} << 13;
constexpr u64 kFeatureAsynchronous = u64{1} << 15;
constexpr u64 kFeatures = kFeatureFlagWp | kFeatureSharedAndHuge | kFeatureUnpopulated;

}  // namespace

Result<WriteProtection> WriteProtection::make(UniqueFd userfaultfd, Mode mode) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kFeatures | (mode == Mode::kNote ? kFeatureAsynchronous : 0);
  if (::ioctl(userfaultfd.get(), UFFDIO_API, &api) != 0) {
    if (errno == EINVAL && mode == Mode::kNote)
      return Error(ErrorKind::kUnsupported,
                   "this host's kernel cannot note writes by itself (Linux 6.7 can)");
    if (errno == EINVAL)
      return Error(ErrorKind::kUnsupported,
                   "this host's kernel cannot write-protect all of a guest's memory "
                   "(Linux 6.4 can)");
    return errno_error(errno, "cannot set up a userfaultfd");
  }
  return WriteProtection(std::move(userfaultfd));
}

WriteProtection::~WriteProtection() {
  if (fd_.valid()) end();
}

Result<void> WriteProtection::add(ByteRange range) {
  uffdio_register ask{};
  ask.range = {range.start, range.end - range.start};
  ask.mode = UFFDIO_REGISTER_MODE_WP;
  if (::ioctl(fd_.get(), UFFDIO_REGISTER, &ask) != 0) {
    const int error = errno;
    if (error == EINVAL)
      return make_error(
          ErrorKind::kUnsupported,
          "the memory at {:#x}-{:#x} cannot be write-protected from outside (is it a file on a disk?)",
          range.start, range.end);
    if (error == EBUSY)
      return make_error(ErrorKind::kBusy, "another userfaultfd has the memory at {:#x}-{:#x}", range.start,
                        range.end);
    return errno_error(error,
                       fmt::format("cannot register the memory at {:#x}-{:#x}", range.start, range.end));
  }
  ranges_.push_back(range);
  return {};
}

Result<void> WriteProtection::change(ByteRange range, u64 mode, const char* what) const {
  uffdio_writeprotect ask{};
  ask.range = {range.start, range.end - range.start};
  ask.mode = mode;
  // EAGAIN: the process is changing its memory map at this moment; nothing was done.
  while (::ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &ask) != 0) {
    if (errno == EAGAIN || errno == EINTR) continue;
    if (errno == ESRCH) return Error(ErrorKind::kVanished, "the process has gone");
    return errno_error(errno,
                       fmt::format("cannot {} the memory at {:#x}-{:#x}", what, range.start, range.end));
  }
  return {};
}

Result<void> WriteProtection::protect(ByteRange range) const {
  return change(range, UFFDIO_WRITEPROTECT_MODE_WP, "write-protect");
}

Result<void> WriteProtection::release(ByteRange range) const { return change(range, 0, "release"); }

Result<std::vector<u64>> WriteProtection::wait_for_writes(int timeout_ms) const {
  return wait_for_pages(fd_.get(), timeout_ms);
}

void WriteProtection::end() const {
  for (const ByteRange& range : ranges_) {
    uffdio_range ask{range.start, range.end - range.start};
    // It fails only when the process or the mapping is gone, and with it the protection.
    ::ioctl(fd_.get(), UFFDIO_UNREGISTER, &ask);
    // Unregistering wakes who waits for a missing page, not who waits to write (userfaultfd_unregister()).
    ::ioctl(fd_.get(), UFFDIO_WAKE, &ask);
  }
}

}  // namespace vmsieve
