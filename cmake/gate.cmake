# The exec gate: a program of its own beside the extensions, in C without any library but the C library's.
add_executable(execgate "${CMAKE_CURRENT_SOURCE_DIR}/native/gate/execgate.c" "${CMAKE_CURRENT_SOURCE_DIR}/native/gate/hold.c")
target_include_directories(execgate PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/bpf")
target_compile_definitions(execgate PRIVATE _GNU_SOURCE=)
target_compile_options(execgate PRIVATE -Wall -Wextra)
target_link_options(execgate PRIVATE -Wl,-z,now) # nothing is looked up, or read from disk, while somebody waits
install(TARGETS execgate RUNTIME DESTINATION agentsight/_native)
