// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "vmsieve/base/result.h"
#include "vmsieve/image/disk_record.h"

namespace vmsieve {

/// The print of a file or block device as it is now: size, time of the last change, and a checksum of its
/// first 64 KiB, its last 4 KiB, and 62 blocks of 4 KiB between, at equal distances.
Result<FilePrint> print_of(const std::string& path);

/// kIncompatible, naming the image, when it is not as it was; kNotFound when it is not there.
Result<void> check_print(const std::string& image, const FilePrint& print);
Result<void> check_print(const SavedDisk& disk);

/// The backing file of a qcow2 image, absolute (a relative one is beside the image); none when it has none,
/// or is no qcow2 image. kDamaged when its header is not whole. QEMU docs/interop/qcow2.rst, "Header".
Result<std::optional<std::string>> backing_of(const std::string& path);

/// The same for the header's first bytes, at most kQcow2HeadBytes: the name as it is written there.
inline constexpr std::size_t kQcow2HeadBytes = 64 << 10;
Result<std::optional<std::string>> backing_in_header(std::string_view head);

/// The format of its backing file, as its header says it ("raw", "qcow2", ...); none when it does not.
Result<std::optional<std::string>> backing_format_of(const std::string& path);
std::optional<std::string> backing_format_in_header(std::string_view head);

/// A chain of backing files that is longer does not end.
inline constexpr std::size_t kLongestChain = 1000;

/// An image and all that it is backed by, the image first. kDamaged when that does not end.
Result<std::vector<std::string>> chain_of(const std::string& path);

/// Does a QEMU (or qemu-img) hold the image for writing? It locks byte 101 for that (QEMU block/file-posix.c,
/// RAW_LOCK_PERM_BASE, and BLK_PERM_WRITE). False where the file system has no locks.
Result<bool> is_held_for_writing(const std::string& path);

/// The processes that have the file open, as far as this user may see.
std::vector<pid_t> users_of(const std::string& path);

bool file_exists(const std::string& path);
/// There is no such file, and that is known: its folder is there, and can be searched.
bool is_gone(const std::string& path);
/// What others have written to the file is durable.
Result<void> sync_file(const std::string& path);
std::string folder_of(const std::string& path);

/// Images in the folder of `image` whose backing file it is.
std::vector<std::string> images_over(const std::string& image);

/// Where a file over `image` goes that is made for checkpoint `id`: in `folder`, or, if that is empty, beside
/// the image: disk.qcow2 and disk.vmsieve-ID0.qcow2 both have disk.vmsieve-ID.qcow2 over them. `number` tells
/// several apart; empty for the VM's own.
std::string overlay_path(const std::string& image, const std::string& folder, const std::string& id,
                         const std::string& number);

/// Files that a command line names, that were made over an image of this name, as overlay_path() says, and
/// that are gone: the VM was started from one, and is back on the image.
std::vector<std::string> gone_overlays_in(const std::vector<std::string>& arguments,
                                          const std::string& image);

/// The checkpoint for which a file of such a name was made; empty: it has another name.
std::string checkpoint_in_name(const std::string& overlay);

/// Makes `file` the image's owner's, with the image's permissions: so that who opens the one may open the
/// other.
Result<void> give_to_owner_of(const std::string& image, const std::string& file);

/// Has nothing ever been written to the disk that the qcow2 image is? kDamaged, kUnsupported: it is none.
Result<bool> is_empty_image(const std::string& path);

/// Makes the names in the file's folder durable, as far as that is possible.
void sync_folder_of(const std::string& path);

}  // namespace vmsieve
