# Tests of the core in C: each tests/native/test_NAME.c is one program, run by CTest; it exits 0 when it passed.
#
# Its argument is the directory of its case files: tests/cases/NAME, or what make_NAME_cases.py DIRECTORY writes. Each fuzz_NAME.c is a libFuzzer target,
# built with AGENTSIGHT_FUZZ (clang). Other .c files of tests/native are helpers, linked into all of them.
find_package(Python REQUIRED COMPONENTS Interpreter)
file(GLOB _tests CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/tests/native/test_*.c")
file(GLOB _helpers CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/tests/native/*.c")
file(GLOB _fuzzers CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/tests/native/fuzz_*.c")
list(FILTER _helpers EXCLUDE REGEX "/(test|fuzz)_[^/]*$")

foreach(_test IN LISTS _tests)
  cmake_path(GET _test STEM _name)
  add_executable(${_name} "${_test}" ${_helpers})
  target_compile_options(${_name} PRIVATE -UNDEBUG -Wno-unused-function) # helpers are headers, no test uses all of one
  target_compile_definitions(${_name} PRIVATE _GNU_SOURCE=)
  target_link_libraries(${_name} PRIVATE agentsight_ring agentsight_core)
  string(REGEX REPLACE "^test_" "" _subject "${_name}")
  set(_cases "${CMAKE_CURRENT_SOURCE_DIR}/tests/cases/${_subject}")
  set(_maker "${CMAKE_CURRENT_SOURCE_DIR}/tests/native/make_${_subject}_cases.py")
  if(EXISTS "${_maker}")
    set(_cases "${CMAKE_CURRENT_BINARY_DIR}/cases/${_subject}")
    add_custom_command(
      OUTPUT "${_cases}.stamp"
      COMMAND "${CMAKE_COMMAND}" -E rm -rf "${_cases}"
      COMMAND "${CMAKE_COMMAND}" -E make_directory "${_cases}"
      COMMAND Python::Interpreter "${_maker}" "${_cases}"
      COMMAND "${CMAKE_COMMAND}" -E touch "${_cases}.stamp"
      DEPENDS "${_maker}"
      COMMENT "Making the cases of ${_name}"
      VERBATIM)
    add_custom_target(${_subject}_cases ALL DEPENDS "${_cases}.stamp")
  elseif(NOT IS_DIRECTORY "${_cases}")
    set(_cases "")
  endif()
  add_test(NAME ${_name} COMMAND ${_name} ${_cases})
  set_tests_properties(${_name} PROPERTIES
    TIMEOUT 600
    ENVIRONMENT "ASAN_OPTIONS=detect_leaks=1:abort_on_error=0;UBSAN_OPTIONS=print_stacktrace=1")
endforeach()

if(AGENTSIGHT_FUZZ)
  foreach(_fuzzer IN LISTS _fuzzers)
    cmake_path(GET _fuzzer STEM _name)
    add_executable(${_name} "${_fuzzer}" ${_helpers})
    target_compile_definitions(${_name} PRIVATE _GNU_SOURCE=)
    target_link_libraries(${_name} PRIVATE agentsight_core)
    target_compile_options(${_name} PRIVATE -Wno-unused-function)
    target_link_options(${_name} PRIVATE -fsanitize=fuzzer)
  endforeach()
endif()
