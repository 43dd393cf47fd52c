// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"

namespace vmsieve {

/// A FIFO that takes the place of a saved image for libvirt, so that nothing is written to a disk. Only this
/// user may open it; it is gone with this object.
///
/// libvirt reads the head of an image, and its QEMU what is behind it. libvirt 9.0 opens the file once; newer
/// ones (seen: 11.3) read the head, close the file, open it again, read the head once more and leave the rest
/// to QEMU (src/qemu/qemu_saveimage.c, qemuSaveImageGetMetadata() and qemuSaveImageOpen()).
class LibvirtFifo {
 public:
  static Result<std::unique_ptr<LibvirtFifo>> make();
  ~LibvirtFifo();
  LibvirtFifo(const LibvirtFifo&) = delete;
  LibvirtFifo& operator=(const LibvirtFifo&) = delete;

  const std::string& path() const { return path_; }

  /// Gives `head` to each who opens the FIFO, until `is_loading` says that the domain's QEMU is there, or
  /// nobody has come for it once more for some seconds: then what is behind the head may be written to the
  /// descriptor that is returned. kVanished after give_up(). Waits; the program must ignore SIGPIPE.
  Result<UniqueFd> serve_head(std::span<const std::byte> head, const std::function<bool()>& is_loading);

  /// Nobody will read any more: serve_head() is told so. From another thread.
  void give_up() { given_up_ = true; }

 private:
  LibvirtFifo(std::string path, UniqueFd events) : path_(std::move(path)), events_(std::move(events)) {}
  Result<UniqueFd> wait_for_reader() const;
  bool reader_has_left() const;
  Result<void> write_head(int fd, std::span<const std::byte> head) const;

  std::string path_;
  UniqueFd events_;  ///< inotify(7), of readers that close it
  std::atomic<bool> given_up_ = false;
};

}  // namespace vmsieve
