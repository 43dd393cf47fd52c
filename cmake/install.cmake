# SPDX-License-Identifier: Apache-2.0
# Files that `cmake --install` lays down.
include(CMakePackageConfigHelpers)
