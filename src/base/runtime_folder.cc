// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/base/runtime_folder.h"

#include <sys/stat.h>
#include <unistd.h>
#include <cstdlib>

namespace vmsieve {

std::string runtime_folder() {
  std::string folder;
  if (::geteuid() == 0) {
    folder = "/run/vmsieve";
  } else if (const char* const runtime = std::getenv("XDG_RUNTIME_DIR");
             runtime != nullptr && *runtime == '/') {
    folder = std::string(runtime) + "/vmsieve";
  } else {
    return folder;
  }
  ::mkdir(folder.c_str(), 0700);
  struct stat info {};
  const bool ours = ::lstat(folder.c_str(), &info) == 0 && S_ISDIR(info.st_mode) &&
                    info.st_uid == ::geteuid() && (info.st_mode & 022) == 0;
  return ours ? folder : "";
}

}  // namespace vmsieve
