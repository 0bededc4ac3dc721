# Cython extensions: each native/NAME.pyx becomes the extension agentsight._native.NAME.
#
# The sources are staged as agentsight/_native/ in the build tree, so that Cython knows the modules by their full names;
# configure_file() stages an edited .pyx or .pxd again, and the depfile of Cython makes what cimports it follow.
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
find_package(Cython MODULE QUIET)
include(UseCython)

set(_stage "${CMAKE_CURRENT_BINARY_DIR}/staged/agentsight/_native")
foreach(_dir IN ITEMS "${_stage}" "${_stage}/..")
  if(NOT EXISTS "${_dir}/__init__.py")
    file(WRITE "${_dir}/__init__.py" "")
  endif()
endforeach()
file(GLOB _cython CONFIGURE_DEPENDS RELATIVE "${CMAKE_CURRENT_SOURCE_DIR}/native"
  "${CMAKE_CURRENT_SOURCE_DIR}/native/*.pyx" "${CMAKE_CURRENT_SOURCE_DIR}/native/*.pxd")
foreach(_file IN LISTS _cython)
  configure_file("native/${_file}" "${_stage}/${_file}" COPYONLY)
endforeach()

list(FILTER _cython INCLUDE REGEX "\\.pyx$")
foreach(_file IN LISTS _cython)
  cmake_path(GET _file STEM _name)
  cython_transpile("${_stage}/${_file}"
    LANGUAGE C
    MODULE_NAME "agentsight._native.${_name}"
    INCLUDE_DIRECTORIES "${_stage}/../.."
    CYTHON_ARGS "$<$<CONFIG:Debug>:-Xboundscheck=True>"
    OUTPUT "${_stage}/${_name}.c"
    OUTPUT_VARIABLE _generated)
  python_add_library(${_name} MODULE WITH_SOABI "${_generated}")
  target_link_libraries(${_name} PRIVATE ${AGENTSIGHT_LINKS_${_name}} agentsight_core)
  target_compile_options(${_name} PRIVATE -Wno-unused-function)
  # Nothing of libbpf or the core leaves the extension; libraries that it does not use are not loaded with it; a symbol that
  # is missing shows at import, not at its first call.
  target_link_options(${_name} PRIVATE -Wl,--exclude-libs,ALL -Wl,--as-needed -Wl,-z,now)
  install(TARGETS ${_name} DESTINATION agentsight/_native)
endforeach()

file(GLOB _stubs CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/native/*.pyi")
install(FILES ${_stubs} DESTINATION agentsight/_native)
if(SKBUILD_METADATA_DIR) # libbpf is inside: its licence travels with it
  install(FILES "${AGENTSIGHT_LIBBPF_SOURCE}/LICENSE.BSD-2-Clause" DESTINATION "${SKBUILD_METADATA_DIR}/licenses/libbpf")
endif()
