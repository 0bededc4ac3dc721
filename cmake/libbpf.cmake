# Finds libbpf's sources and builds them as the static library agentsight_libbpf.
#
# Out: target agentsight_libbpf (its headers as <bpf/...>), AGENTSIGHT_LIBBPF_SOURCE (the tree taken) and
# AGENTSIGHT_LIBBPF_INCLUDE (directories for BPF programs too). An error tells the command to run.
find_package(PkgConfig REQUIRED)
pkg_check_modules(AGENTSIGHT_ELF REQUIRED IMPORTED_TARGET libelf zlib)

message(CHECK_START "Looking for libbpf's sources")
set(_origin "")
if(AGENTSIGHT_LIBBPF_DIR)
  set(_candidates "${AGENTSIGHT_LIBBPF_DIR}" "AGENTSIGHT_LIBBPF_DIR")
elseif(DEFINED ENV{AGENTSIGHT_LIBBPF_DIR} AND NOT "$ENV{AGENTSIGHT_LIBBPF_DIR}" STREQUAL "")
  set(_candidates "$ENV{AGENTSIGHT_LIBBPF_DIR}" "AGENTSIGHT_LIBBPF_DIR of the environment")
else()
  # An empty native/libbpf is a submodule that was not fetched.
  set(_candidates
    "${CMAKE_CURRENT_SOURCE_DIR}/native/libbpf" "submodule"
    "${CMAKE_CURRENT_SOURCE_DIR}/.cache/libbpf-1.5.0" "Debian's source package")
endif()
while(_candidates AND NOT _origin)
  list(POP_FRONT _candidates _dir _name)
  if(EXISTS "${_dir}/src/libbpf.c" AND EXISTS "${_dir}/src/libbpf_version.h")
    set(AGENTSIGHT_LIBBPF_SOURCE "${_dir}")
    set(_origin "${_name}")
  endif()
endwhile()
if(NOT _origin)
  message(CHECK_FAIL "not found")
  message(FATAL_ERROR "libbpf's sources are needed. Run: scripts/setup.sh\n"
    "or: git submodule update --init native/libbpf\n"
    "or give a tree of libbpf 1.5 with -DAGENTSIGHT_LIBBPF_DIR=PATH.")
endif()
file(STRINGS "${AGENTSIGHT_LIBBPF_SOURCE}/src/libbpf_version.h" _version REGEX "define LIBBPF_M(AJOR|INOR)_VERSION")
string(REGEX REPLACE "[^0-9]*([0-9]+)[^0-9]+([0-9]+)" "\\1.\\2" _version "${_version}")
message(CHECK_PASS "${_origin}, version ${_version}: ${AGENTSIGHT_LIBBPF_SOURCE}")

# The tree keeps its headers in src/, programs include them as <bpf/...>.
set(_include "${CMAKE_CURRENT_BINARY_DIR}/libbpf-include")
file(MAKE_DIRECTORY "${_include}")
file(CREATE_LINK "${AGENTSIGHT_LIBBPF_SOURCE}/src" "${_include}/bpf" SYMBOLIC)
set(AGENTSIGHT_LIBBPF_INCLUDE "${_include}" "${AGENTSIGHT_LIBBPF_SOURCE}/include/uapi")

file(GLOB _sources CONFIGURE_DEPENDS "${AGENTSIGHT_LIBBPF_SOURCE}/src/*.c")
add_library(agentsight_libbpf STATIC ${_sources})
set_target_properties(agentsight_libbpf PROPERTIES C_STANDARD 99)
target_compile_definitions(agentsight_libbpf PRIVATE _LARGEFILE64_SOURCE _FILE_OFFSET_BITS=64)
target_compile_options(agentsight_libbpf PRIVATE -w) # not our code: its warnings are its authors'
target_include_directories(agentsight_libbpf
  PRIVATE "${AGENTSIGHT_LIBBPF_SOURCE}/src" "${AGENTSIGHT_LIBBPF_SOURCE}/include"
  SYSTEM PUBLIC ${AGENTSIGHT_LIBBPF_INCLUDE})
target_link_libraries(agentsight_libbpf PUBLIC PkgConfig::AGENTSIGHT_ELF)
