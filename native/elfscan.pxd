# Declarations of core/elffile.h and core/elfscan.h; no code.
from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "elffile.h" nogil:
    enum:
        AS_ELF_OK
        AS_ELF_IO
        AS_PAT_MAX
        AS_PATS_MAX
    ctypedef struct as_elf:
        int err
        uint64_t size
        uint16_t machine
        uint16_t type
        uint8_t build_id[64]
        uint32_t build_id_len
    int as_elf_open(as_elf *e, int fd)
    void as_elf_close(as_elf *e)
    const char *as_elf_strstatus(int status)

cdef extern from "elfscan.h" nogil:
    enum:
        AS_WANTS_MAX
        AS_HOW_NONE
    ctypedef struct as_want:
        const char *const *names
        uint32_t n_names
        const char *const *labels
        uint32_t n_labels
        uint32_t anchors
        uint32_t require
        uint32_t never
        int8_t label_reg
        uint8_t go
        const char *file
        uint32_t error
    ctypedef struct as_found:
        int how
        uint64_t va
        uint64_t off
        uint32_t evidence
        uint32_t agree
        int likely
        char reason[160]
    int as_elf_scan_debug(as_elf *e, int fd, int debug_fd, const as_want *wants, uint32_t n, as_found *out)
