# Tests of the core in C: each tests/native/test_NAME.c is one program, run by CTest; it exits 0 when it passed.
#
# Its argument is the directory of its case files, tests/cases/NAME, where there is one. Other .c files of tests/native are
# helpers, linked into every test.
file(GLOB _tests CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/tests/native/test_*.c")
file(GLOB _helpers CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/tests/native/*.c")
if(_tests)
  list(REMOVE_ITEM _helpers ${_tests})
endif()
foreach(_test IN LISTS _tests)
  cmake_path(GET _test STEM _name)
  add_executable(${_name} "${_test}" ${_helpers})
  target_compile_options(${_name} PRIVATE -UNDEBUG)
  target_compile_definitions(${_name} PRIVATE _GNU_SOURCE=)
  target_link_libraries(${_name} PRIVATE agentsight_ring agentsight_core)
  string(REGEX REPLACE "^test_" "${CMAKE_CURRENT_SOURCE_DIR}/tests/cases/" _cases "${_name}")
  if(NOT IS_DIRECTORY "${_cases}")
    set(_cases "")
  endif()
  add_test(NAME ${_name} COMMAND ${_name} ${_cases})
  set_tests_properties(${_name} PROPERTIES
    TIMEOUT 300
    ENVIRONMENT "ASAN_OPTIONS=detect_leaks=1:abort_on_error=0;UBSAN_OPTIONS=print_stacktrace=1")
endforeach()
