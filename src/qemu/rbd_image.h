// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include "vmsieve/base/result.h"

namespace vmsieve {

/// An image in a Ceph cluster (QEMU block/rbd.c).
struct RbdImage {
  std::string name;     ///< rbd:POOL/IMAGE, or rbd:POOL/NAMESPACE/IMAGE
  std::string options;  ///< those of QEMU's node, a JSON object (qapi/block-core.json, BlockdevOptionsRbd)
  bool has_secret = false;    ///< its key is an object of that QEMU's, so that no other program can use it
  bool is_snapshot = false;   ///< what is open is a snapshot of it
  bool is_only_part = false;  ///< the disk begins or ends somewhere in it
};

/// The image in what QEMU calls an image's file, or a command line does: "rbd:...", or "json:{...}" whose
/// innermost `file` is one of driver `rbd`. None when it is another. Names are of printable ASCII.
std::optional<RbdImage> rbd_image(const std::string& file);

/// As above, of a node's options as JSON: for `-blockdev`.
std::optional<RbdImage> rbd_image_of_node(const std::string& json);

/// What qemu-img calls the image, or, if that is not empty, the snapshot of it: "json:{...}", of format raw.
/// kDamaged: the options are not as in RbdImage.
Result<std::string> rbd_filename(const std::string& options, const std::string& snapshot);

}  // namespace vmsieve
