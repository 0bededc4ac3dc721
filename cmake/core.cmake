# The C core: native/core/*.c without Python and without I/O.
#
# Out: agentsight_core (decoding, ELF scan) and agentsight_ring (the few sources that need libbpf), both static, position
# independent, all symbols hidden; with AGENTSIGHT_SANITIZE compiled with ASan and UBSan.
pkg_check_modules(AGENTSIGHT_CODECS REQUIRED IMPORTED_TARGET libcrypto zlib libbrotlidec libzstd)
find_package(Threads REQUIRED)

add_library(agentsight_flags INTERFACE)
target_compile_options(agentsight_flags INTERFACE -Wall -Wextra -Wno-unused-parameter -Werror=implicit-function-declaration)
if(AGENTSIGHT_SANITIZE)
  set(_sanitizers -fsanitize=address,undefined -fno-sanitize-recover=all)
  if(AGENTSIGHT_FUZZ)
    list(APPEND _sanitizers -fsanitize=fuzzer-no-link)
  endif()
  target_compile_options(agentsight_flags INTERFACE ${_sanitizers} -fno-omit-frame-pointer -O2)
  target_link_options(agentsight_flags INTERFACE ${_sanitizers})
endif()

file(GLOB _core CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/native/core/*.c")
set(_ring ${AGENTSIGHT_RING_SOURCES})
list(TRANSFORM _ring PREPEND "${CMAKE_CURRENT_SOURCE_DIR}/native/core/")
list(REMOVE_ITEM _core ${_ring})

function(agentsight_library name)
  add_library(${name} STATIC ${ARGN})
  target_include_directories(${name} PUBLIC
    "${CMAKE_CURRENT_SOURCE_DIR}/native/core" "${CMAKE_CURRENT_SOURCE_DIR}/bpf")
  target_compile_definitions(${name} PRIVATE _GNU_SOURCE=) # memmem and others; the same as `#define _GNU_SOURCE`
  target_link_libraries(${name} PUBLIC agentsight_flags Threads::Threads)
endfunction()

agentsight_library(agentsight_core ${_core})
target_link_libraries(agentsight_core PUBLIC PkgConfig::AGENTSIGHT_CODECS)
agentsight_library(agentsight_ring ${_ring})
target_link_libraries(agentsight_ring PUBLIC agentsight_core agentsight_libbpf)
