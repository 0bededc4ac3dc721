# Compiles bpf/agentsight.bpf.c with one call of clang to the object that the package carries and loads from memory.
#
# Out: build tree's agentsight.bpf.o, installed as agentsight/_native/agentsight.bpf.o. DWARF is stripped where llvm-strip is
# found; BTF, which CO-RE needs, stays.
set(_source "${CMAKE_CURRENT_SOURCE_DIR}/bpf/agentsight.bpf.c")
set(_versions 22 21 20 19 18 17 16 15 14 13 12)
list(TRANSFORM _versions PREPEND "clang-" OUTPUT_VARIABLE _clangs)
list(TRANSFORM _versions PREPEND "llvm-strip-" OUTPUT_VARIABLE _strips)
find_program(AGENTSIGHT_CLANG NAMES clang ${_clangs} DOC "clang for the BPF target")
find_program(AGENTSIGHT_LLVM_STRIP NAMES llvm-strip ${_strips} DOC "strips DWARF from the BPF object")
if(NOT AGENTSIGHT_CLANG)
  message(FATAL_ERROR "clang is needed for the BPF programs. Run: scripts/setup.sh (or: apt-get install clang llvm)")
endif()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(_arch x86)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(_arch arm64)
else()
  message(FATAL_ERROR "agentsight runs on x86_64 and aarch64, not on ${CMAKE_SYSTEM_PROCESSOR}")
endif()
message(STATUS "BPF programs: ${AGENTSIGHT_CLANG}, for ${_arch}, DWARF stripped by: ${AGENTSIGHT_LLVM_STRIP}")

set(_flags -O2 -g -target bpf -mcpu=v3 -D__TARGET_ARCH_${_arch} -Wall -Wextra -Wno-unused-parameter
  "-I${CMAKE_CURRENT_SOURCE_DIR}/bpf")
foreach(_dir IN LISTS AGENTSIGHT_LIBBPF_INCLUDE)
  list(APPEND _flags -isystem "${_dir}")
endforeach()
if(CMAKE_LIBRARY_ARCHITECTURE) # Debian keeps <asm/types.h> here, where clang does not look for the BPF target
  list(APPEND _flags -idirafter "/usr/include/${CMAKE_LIBRARY_ARCHITECTURE}")
endif()

set(_object "${CMAKE_CURRENT_BINARY_DIR}/agentsight.bpf.o")
set(_strip "")
if(AGENTSIGHT_LLVM_STRIP)
  set(_strip COMMAND "${AGENTSIGHT_LLVM_STRIP}" -g "${_object}")
endif()
add_custom_command(
  OUTPUT "${_object}"
  COMMAND "${AGENTSIGHT_CLANG}" ${_flags} -MD -MF "${_object}.d" -MT "${_object}" -c "${_source}" -o "${_object}"
  ${_strip}
  DEPENDS "${_source}"
  DEPFILE "${_object}.d"
  COMMENT "Compiling the BPF programs"
  VERBATIM)
add_custom_target(agentsight_bpf ALL DEPENDS "${_object}")
install(FILES "${_object}" DESTINATION agentsight/_native)
