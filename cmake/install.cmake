# SPDX-License-Identifier: Apache-2.0
# What `cmake --install` lays down: the command, the library with its headers, a CMake package, the
# manual page, shell completion.
include(CMakePackageConfigHelpers)

install(TARGETS vmsieve RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
if(LIBVIRT_FOUND)
  install(TARGETS vmsieve-libvirt RUNTIME DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/vmsieve)
endif()
install(TARGETS vmsieve_lib EXPORT vmsieve-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY src/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/vmsieve
  FILES_MATCHING PATTERN "*.h" PATTERN "cli" EXCLUDE)
install(EXPORT vmsieve-targets NAMESPACE vmsieve:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/vmsieve)
configure_package_config_file(cmake/vmsieve-config.cmake.in ${CMAKE_BINARY_DIR}/vmsieve-config.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/vmsieve)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/vmsieve-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/vmsieve-config.cmake ${CMAKE_BINARY_DIR}/vmsieve-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/vmsieve)
install(FILES man/vmsieve.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES completion/vmsieve.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME vmsieve)
install(FILES completion/_vmsieve DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
