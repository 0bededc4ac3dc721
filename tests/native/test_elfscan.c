/* SPDX-License-Identifier: MIT
 *
 * The finders on files made here: what must be found, what must not, and what damaged files may do. The invariant: whatever the
 * bytes of a file are, a scan ends with a status, and what it finds lies inside the file.
 */
#include "elfscan.h"
#include "x86insn.h"

#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int checks, failures;
#define CHECK(x)                                                                                                                 \
    do {                                                                                                                         \
        checks++;                                                                                                                \
        if (!(x)) {                                                                                                              \
            failures++;                                                                                                          \
            printf("%s:%d: %s: failed: %s\n", __FILE__, __LINE__, __func__, #x);                                                 \
        }                                                                                                                        \
    } while (0)

/* ---- an ELF file under construction: headers and labels in one segment, code in another ---- */
#define FILE_SIZE 0x4000
#define RODATA 0x800
#define CODE 0x1000
#define CODE_SIZE 0x2000
#define SECTIONS 0x3000
#define SYMBOLS 0x3400
#define NAMES 0x3800
static uint8_t image[FILE_SIZE];
static uint64_t base, delta; /* address of the file's first byte; addresses of code are `delta` further than their offset says */
static size_t strings_n, code_n;

static Elf64_Ehdr *ehdr(void) {
    return (void *)image;
}
static Elf64_Phdr *phdr(int i) {
    return (Elf64_Phdr *)(void *)(image + sizeof(Elf64_Ehdr)) + i;
}

static void begin(int type, uint64_t at, uint64_t gap) {
    memset(image, 0, sizeof image);
    base = at;
    delta = gap;
    strings_n = RODATA;
    code_n = CODE;
    Elf64_Ehdr *h = ehdr();
    memcpy(h->e_ident, ELFMAG, SELFMAG);
    h->e_ident[EI_CLASS] = ELFCLASS64;
    h->e_ident[EI_DATA] = ELFDATA2LSB;
    h->e_machine = EM_X86_64;
    h->e_type = (Elf64_Half)type;
    h->e_phoff = sizeof *h;
    h->e_phentsize = sizeof(Elf64_Phdr);
    h->e_phnum = 2;
    *phdr(0) =
        (Elf64_Phdr){.p_type = PT_LOAD, .p_flags = PF_R, .p_offset = 0, .p_vaddr = base, .p_filesz = CODE, .p_memsz = CODE};
    *phdr(1) = (Elf64_Phdr){.p_type = PT_LOAD,
                            .p_flags = PF_R | PF_X,
                            .p_offset = CODE,
                            .p_vaddr = base + CODE + delta,
                            .p_filesz = CODE_SIZE,
                            .p_memsz = CODE_SIZE};
    memset(image + CODE, 0x90, CODE_SIZE);
}

static uint64_t string(const char *s) {
    size_t at = strings_n;
    memcpy(image + at, s, strlen(s) + 1);
    strings_n += strlen(s) + 1;
    return base + at;
}

static uint64_t here(void) {
    return base + code_n + delta;
}

static void code(const void *bytes, size_t n) {
    memcpy(image + code_n, bytes, n);
    code_n += n;
}

static void code32(uint64_t v) {
    uint32_t w = (uint32_t)v;
    code(&w, 4);
}

static void align(void) {
    code_n = (code_n + 15) & ~(size_t)15;
}

static void lea(int reg, uint64_t target) {
    uint8_t op[3] = {reg & 8 ? 0x4c : 0x48, 0x8d, (uint8_t)(0x05 | (reg & 7) << 3)};
    code(op, 3);
    code32(target - (here() + 4));
}

static void mov_imm(int reg, uint64_t target) {
    uint8_t op = (uint8_t)(0xb8 | reg);
    code(&op, 1);
    code32(target);
}

static void branch(uint8_t op, uint64_t target) {
    code(&op, 1);
    code32(target - (here() + 4));
}

static uint64_t function(void) {
    align();
    uint64_t at = here();
    code("\x55\x48\x89\xe5\x5d\xc3", 6); /* push rbp; mov rbp, rsp; pop rbp; ret */
    align();
    return at;
}

static int file_of(const void *bytes, size_t n) {
    int fd = memfd_create("elf", MFD_CLOEXEC);
    if (fd < 0 || write(fd, bytes, n) != (ssize_t)n)
        abort();
    return fd;
}

static const char *const NAMES_[] = {"ssl_log_secret"};
static const char *const LABELS[] = {"CLIENT_RANDOM", "EARLY_EXPORTER_SECRET", "SERVER_TRAFFIC_SECRET_0"};
static const as_want WANT = {.names = NAMES_, .n_names = 1, .labels = LABELS, .n_labels = 3, .anchors = 3, .label_reg = 6};

static int scan_n(size_t n, const as_want *wants, uint32_t n_wants, as_found *out) {
    int fd = file_of(image, n);
    as_elf e;
    int rc = as_elf_scan(&e, fd, wants, n_wants, out);
    as_elf_close(&e);
    close(fd);
    return rc;
}

static as_found scan(void) {
    as_found f;
    CHECK(scan_n(FILE_SIZE, &WANT, 1, &f) == AS_ELF_OK);
    return f;
}

static void add_symbol(uint32_t table, uint64_t va, const char *name, int defined) {
    Elf64_Ehdr *h = ehdr();
    Elf64_Shdr *s = (void *)(image + SECTIONS);
    h->e_shoff = SECTIONS;
    h->e_shentsize = sizeof *s;
    h->e_shnum = 3;
    s[1] = (Elf64_Shdr){.sh_type = table,
                        .sh_offset = SYMBOLS,
                        .sh_size = s[1].sh_size + sizeof(Elf64_Sym),
                        .sh_link = 2,
                        .sh_entsize = sizeof(Elf64_Sym)};
    s[2].sh_type = SHT_STRTAB;
    s[2].sh_offset = NAMES;
    size_t at = s[2].sh_size ? s[2].sh_size : 1;
    memcpy(image + NAMES + at, name, strlen(name) + 1);
    s[2].sh_size = at + strlen(name) + 1;
    Elf64_Sym *y = (Elf64_Sym *)(void *)(image + SYMBOLS) + s[1].sh_size / sizeof *y - 1;
    *y = (Elf64_Sym){.st_name = (Elf64_Word)at,
                     .st_info = ELF64_ST_INFO(STB_GLOBAL, STT_FUNC),
                     .st_value = va,
                     .st_shndx = defined ? 1 : SHN_UNDEF};
}

/* ---- what must be found ---- */
static void test_symbols(void) {
    for (int k = 0; k < 2; k++) {
        begin(ET_DYN, 0, 0x1000);
        uint64_t other = function(), fn = function();
        add_symbol(k ? SHT_SYMTAB : SHT_DYNSYM, other, "ssl_log_secret_not", 1);
        add_symbol(k ? SHT_SYMTAB : SHT_DYNSYM, fn, "ssl_log_secret", 1);
        as_found f = scan();
        CHECK(f.how == (k ? AS_HOW_SYMTAB : AS_HOW_DYNSYM) && f.va == fn && f.off == fn - 0x1000);
    }
    begin(ET_DYN, 0, 0); /* imported, not defined */
    add_symbol(SHT_DYNSYM, 0, "ssl_log_secret", 0);
    CHECK(scan().how == AS_HOW_NONE);
    begin(ET_DYN, 0, 0); /* two functions of that name */
    uint64_t one = function(), two = function();
    add_symbol(SHT_SYMTAB, one, "ssl_log_secret", 1);
    add_symbol(SHT_SYMTAB, two, "ssl_log_secret", 1);
    CHECK(scan().how == AS_HOW_NONE);
    begin(ET_DYN, 0, 0); /* in data, not in code */
    add_symbol(SHT_DYNSYM, 0x900, "ssl_log_secret", 1);
    CHECK(scan().how == AS_HOW_NONE);
}

/* A program with `fn` called behind direct loads of the first two labels, and the third through a variable. */
static uint64_t make_calls(int type, uint64_t at, uint64_t gap, int absolute) {
    begin(type, at, gap);
    uint64_t s[3];
    for (int i = 0; i < 3; i++)
        s[i] = string(LABELS[i]);
    uint64_t fn = function(), helper = function();
    void (*load)(int, uint64_t) = absolute ? mov_imm : lea;
    load(6, s[0]);
    code("\x48\x89\xdf", 3); /* mov rdi, rbx */
    branch(0xe8, fn);
    load(0, s[2]); /* mov rax, label: not the argument */
    branch(0xe8, helper);
    load(6, s[1]);
    code("\x48\x83\xc2\x50", 4); /* add rdx, 0x50 */
    branch(0xe9, fn); /* the last thing that its caller does */
    return fn;
}

static void test_xref(void) {
    uint64_t fn = make_calls(ET_DYN, 0, 0x1000, 0);
    as_found f = scan();
    CHECK(f.how == AS_HOW_XREF && f.va == fn && f.off == fn - 0x1000 && f.agree == 3 && f.evidence == 7);
    fn = make_calls(ET_EXEC, 0x400000, 0x3000, 1);
    f = scan();
    CHECK(f.how == AS_HOW_XREF && f.va == fn && f.off == fn - 0x403000);
    fn = make_calls(ET_EXEC, 0x400000, 0, 0);
    CHECK(scan().va == fn);
    make_calls(ET_DYN, 0x400000, 0, 1); /* absolute words mean nothing in a shared object */
    CHECK(scan().how == AS_HOW_NONE);
    /* descriptions with the same labels: a register that is never loaded, and a function that another one has */
    make_calls(ET_DYN, 0, 0, 0);
    as_want wants[3] = {WANT, WANT, WANT};
    wants[0].label_reg = 3;
    wants[1].label_reg = -1;
    as_found out[3];
    CHECK(scan_n(FILE_SIZE, wants, 3, out) == AS_ELF_OK);
    CHECK(out[0].how == AS_HOW_NONE && !out[0].likely);
    CHECK(out[1].how == AS_HOW_XREF && out[1].agree == 3);
    CHECK(out[2].how == AS_HOW_NONE && !out[2].likely);
}

/* ---- what must not ---- */
static void test_not_found(void) {
    begin(ET_DYN, 0, 0);
    as_found f = scan();
    CHECK(f.how == AS_HOW_NONE && !f.evidence && strstr(f.reason, "0 of its"));
    string("CLIENT_RANDOMNESS"); /* not the label */
    CHECK(!scan().evidence);

    begin(ET_DYN, 0, 0); /* one label is not enough, however often */
    uint64_t s = string(LABELS[0]), other = string(LABELS[1]), fn = function();
    for (int i = 0; i < 2; i++) {
        lea(6, s);
        branch(0xe8, fn);
    }
    f = scan();
    CHECK(f.how == AS_HOW_NONE && f.evidence == 3 && strstr(f.reason, "two of its key-log labels"));

    lea(6, other); /* the second one leads elsewhere */
    branch(0xe8, function());
    CHECK(scan().how == AS_HOW_NONE);

    begin(ET_DYN, 0, 0); /* two functions with equal claims */
    uint64_t a = string(LABELS[0]), b = string(LABELS[1]), f1 = function(), f2 = function();
    uint64_t to[4] = {f1, f1, f2, f2};
    for (int i = 0; i < 4; i++) {
        lea(6, i & 1 ? b : a);
        branch(0xe8, to[i]);
    }
    f = scan();
    CHECK(f.how == AS_HOW_NONE && strstr(f.reason, "two functions"));

    begin(ET_DYN, 0, 0); /* an address in the middle of a function: no prologue, not aligned */
    a = string(LABELS[0]);
    b = string(LABELS[1]);
    fn = function() + 3;
    lea(6, a);
    branch(0xe8, fn);
    lea(6, b);
    branch(0xe8, fn);
    f = scan();
    CHECK(f.how == AS_HOW_NONE && strstr(f.reason, "no function's start"));

    make_calls(ET_DYN, 0, 0, 0);
    ehdr()->e_machine = EM_AARCH64; /* x86-64 code is no arm64 code */
    f = scan();
    CHECK(f.how == AS_HOW_NONE && f.evidence == 7 && f.likely && strstr(f.reason, "no code loads"));
}

/* ---- two stacks with the same labels in one file ---- */
static void test_two_stacks(void) {
    for (int odd = 0; odd < 2; odd++) {
        begin(ET_DYN, 0, 0x1000);
        uint64_t s[3];
        for (int i = 0; i < 3; i++)
            s[i] = string(LABELS[i]);
        uint64_t one = function(), two = function();
        const struct {
            uint64_t label, to;
        } calls[] = {{s[0], one}, {s[1], one}, {s[0], two}, {s[2], two}};
        for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
            lea(6, calls[i].label);
            branch(0xe8, calls[i].to);
        }
        if (odd) { /* the first one takes what it never does: left over, it is the first one's all the same */
            lea(6, s[2]);
            branch(0xe8, one);
            lea(6, s[1]);
            branch(0xe8, two);
        }
        as_want wants[3] = {WANT, WANT, WANT};
        wants[0].never = 4; /* SERVER_TRAFFIC_SECRET_0 */
        wants[1].require = 4;
        wants[1].never = odd ? 0 : 2; /* EARLY_EXPORTER_SECRET */
        wants[2].require = 7;
        wants[2].anchors = 2;
        as_found out[3];
        CHECK(scan_n(FILE_SIZE, wants, 3, out) == AS_ELF_OK);
        if (odd) { /* both look the same: nothing is said of either */
            for (int i = 0; i < 3; i++)
                CHECK(out[i].how == AS_HOW_NONE && out[i].likely && strstr(out[i].reason, "two functions"));
            continue;
        }
        CHECK(out[0].how == AS_HOW_XREF && out[0].va == one && out[0].agree == 3);
        CHECK(out[1].how == AS_HOW_XREF && out[1].va == two && out[1].agree == 5);
        CHECK(out[2].how == AS_HOW_NONE && !out[2].likely && strstr(out[2].reason, "another stack's"));
    }
    make_calls(ET_DYN, 0, 0, 0); /* what a want never takes, but nobody else does either */
    as_want wants[2] = {WANT, WANT};
    wants[0].never = 1;
    wants[1].require = 4;
    as_found out[2];
    CHECK(scan_n(FILE_SIZE, wants, 2, out) == AS_ELF_OK);
    CHECK(out[0].how == AS_HOW_XREF && out[1].how == AS_HOW_NONE && !out[1].likely);
}

/* ---- arm64 ---- */
static void insn(uint32_t w) {
    code32(w);
}

static void adrp(uint32_t reg, uint64_t target) {
    int64_t pages = (int64_t)(target >> 12) - (int64_t)(here() >> 12);
    insn(0x90000000 | reg | (uint32_t)(pages & 3) << 29 | (uint32_t)(pages >> 2 & 0x7ffff) << 5);
}

static void add(uint32_t to, uint32_t from, uint64_t target) {
    insn(0x91000000 | to | from << 5 | (uint32_t)(target & 0xfff) << 10);
}

static void bl(uint32_t op, uint64_t target) {
    insn(op | (uint32_t)((int64_t)(target - here()) >> 2 & 0x3ffffff));
}

static uint64_t function_a64(void) {
    align();
    insn(0xd503201f); /* nop */
    uint64_t at = here();
    insn(0xa9bf7bfd); /* stp x29, x30, [sp, #-16]! */
    insn(0xa8c17bfd);
    insn(0xd65f03c0); /* ret */
    return at;
}

static void test_arm64(void) {
    for (int variant = 0; variant < 5; variant++) {
        begin(ET_DYN, variant & 1 ? 0x400000 : 0, 0x10000);
        ehdr()->e_machine = EM_AARCH64;
        uint64_t s[3];
        for (int i = 0; i < 3; i++)
            s[i] = string(LABELS[i]);
        uint64_t fn = function_a64(), helper = function_a64();
        uint32_t label = variant == 3 ? 2 : 1; /* variant 3: not the argument's register */
        adrp(8, s[0]);
        insn(0xaa1303e0); /* mov x0, x19 */
        add(label, 8, s[0]);
        insn(0xf9400042); /* ldr x2, [x2] */
        bl(0x94000000, fn);
        adrp(9, s[2]); /* a variable */
        add(9, 9, s[2]);
        bl(0x94000000, helper);
        adrp(1, s[1]);
        add(1, 1, s[1]);
        insn(0xb5000040); /* cbnz x0, + 8 */
        if (variant == 4)
            insn(0xd63f0100); /* blr x8: another call comes first */
        bl(variant == 2 ? 0x14000000 : 0x94000000, fn);
        as_found f = scan();
        if (variant < 3)
            CHECK(f.how == AS_HOW_XREF && f.va == fn && f.off == fn - base - 0x10000 && f.agree == 3);
        else
            CHECK(f.how == AS_HOW_NONE && f.likely);
    }
}

/* ---- Go's table ---- */
static const char *const GO_NAMES[] = {"crypto/tls.(*Config).writeKeyLog"};
static const as_want GO_WANT = {.names = GO_NAMES, .n_names = 1, .label_reg = 3, .go = 1};

/* A table at `at` with three functions, the second one of the name; its start of the code in the header, or none. */
static uint64_t make_go(uint64_t at, uint32_t magic, int machine, int header_has_start) {
    static const char *const names[] = {"runtime.main", "crypto/tls.(*Config).writeKeyLog", "main.main"};
    begin(ET_EXEC, 0x400000, 0);
    ehdr()->e_machine = (Elf64_Half)machine;
    uint8_t *t = image + at;
    uint32_t name_at[3], n = 0, names_off = 0x48;
    uint64_t text = here();
    memcpy(t, &magic, 4);
    t[6] = machine == EM_X86_64 ? 1 : 4;
    t[7] = 8;
    for (int i = 0; i < 3; i++) {
        name_at[i] = n;
        memcpy(t + names_off + n, names[i], strlen(names[i]) + 1);
        n += (uint32_t)strlen(names[i]) + 1;
    }
    const uint64_t head[] = {3, 0, header_has_start ? text : 0, names_off, 0x100, 0x110, 0x110, 0x120};
    memcpy(t + 8, head, sizeof head);
    for (uint32_t i = 0; i < 3; i++) {
        code(machine == EM_X86_64 ? "\x49\x3b\x66\x10" : "\x90\x0b\x40\xf9", 4);
        align();
        uint32_t row[] = {i * 16, 0x40 + i * 16}, description[] = {i * 16, name_at[i]};
        memcpy(t + 0x120 + i * 8, row, sizeof row);
        memcpy(t + 0x120 + row[1], description, sizeof description);
    }
    return text + 16;
}

static void test_go(void) {
    as_found f;
    for (int k = 0; k < 8; k++) {
        uint64_t fn = make_go(0x810, k & 1 ? 0xfffffff1 : 0xfffffff0, k & 2 ? EM_X86_64 : EM_AARCH64, k & 4);
        CHECK(scan_n(FILE_SIZE, &GO_WANT, 1, &f) == AS_ELF_OK);
        CHECK(f.how == AS_HOW_GOPCLNTAB && f.va == fn && f.off == fn - 0x400000);
        image[fn - 0x400000] ^= 1; /* what is there is none of Go's functions */
        CHECK(scan_n(FILE_SIZE, &GO_WANT, 1, &f) == AS_ELF_OK);
        CHECK(f.how == AS_HOW_NONE && f.likely && strstr(f.reason, "unclear"));
    }
    make_go(0x814, 0xfffffff1, EM_X86_64, 1); /* not aligned: no table */
    CHECK(scan_n(FILE_SIZE, &GO_WANT, 1, &f) == AS_ELF_OK);
    CHECK(f.how == AS_HOW_NONE && !f.likely && strstr(f.reason, "no Go program"));
    make_go(0x810, 0xfffffff1, EM_X86_64, 1);
    image[0x810 + 0x48 + 13] = 'x'; /* another name */
    CHECK(scan_n(FILE_SIZE, &GO_WANT, 1, &f) == AS_ELF_OK);
    CHECK(f.how == AS_HOW_NONE && !f.likely && strstr(f.reason, "not in this Go program"));
    make_go(0x810, 0xfffffff1, EM_X86_64, 1);
    memset(image + 0x810 + 0x120 + 20, 0xff, 4); /* a description outside the table */
    CHECK(scan_n(FILE_SIZE, &GO_WANT, 1, &f) == AS_ELF_OK);
    CHECK(f.how == AS_HOW_NONE && strstr(f.reason, "contradicts"));
}

/* What frame descriptions say of a place: 0 a function begins there, 1 it lies inside one, 2 nothing. */
static void test_eh_frame_hdr(void) {
    for (int what = 0; what < 3; what++) {
        uint64_t fn = make_calls(ET_DYN, 0, 0, 0);
        uint8_t head[12] = {1, 0x1b, 3, 0x3b, 0, 0, 0, 0, 3};
        int32_t start = (int32_t)fn - (what ? 1 : 0);
        int32_t table[] = {0, 0x200, start - 0xc00, 0x100, 0x5000, 0x200};
        int32_t fde[] = {12, 4, start - 0xd08, what == 2 ? 1 : 64};
        memcpy(image + 0xc00, head, sizeof head);
        memcpy(image + 0xc0c, table, sizeof table);
        memcpy(image + 0xd00, fde, sizeof fde);
        ehdr()->e_phnum = 3;
        *phdr(2) = (Elf64_Phdr){.p_type = PT_GNU_EH_FRAME, .p_offset = 0xc00, .p_vaddr = 0xc00, .p_filesz = 12 + sizeof table};
        CHECK(scan().how == (what == 1 ? AS_HOW_NONE : AS_HOW_XREF));
    }
}

/* Labels, and the words that refer to them, across the ends of the windows in which a file is read. */
static void test_windows(void) {
    static uint8_t big[4 * AS_ELF_WINDOW];
    const size_t text = 2 * AS_ELF_WINDOW - 0x100; /* offset of the executable segment */
    for (int shift = -48; shift <= 48; shift++) {
        uint64_t fn = make_calls(ET_DYN, 0, 0, 0);
        size_t label = AS_ELF_WINDOW + (size_t)(shift - 16), calls = text + AS_ELF_WINDOW - 64 + (size_t)(shift - 64);
        memset(big, 0, text);
        memset(big + text, 0x90, sizeof big - text);
        memcpy(big, image, 0x200);
        memcpy(big + label, image + RODATA, 0x100);
        memcpy(big + calls, image + CODE, 0x200);
        Elf64_Phdr *p = (Elf64_Phdr *)(void *)(big + sizeof(Elf64_Ehdr));
        p[0].p_filesz = text;
        p[0].p_vaddr = 0x10000000;
        p[1].p_offset = text;
        p[1].p_filesz = sizeof big - text;
        /* the distance from the code to its labels stays what it was */
        p[1].p_vaddr = 0x10000000 + label - RODATA + CODE - (calls - text);
        int fd = file_of(big, sizeof big);
        as_elf e;
        as_found f;
        CHECK(as_elf_scan(&e, fd, &WANT, 1, &f) == AS_ELF_OK);
        as_elf_close(&e);
        close(fd);
        CHECK(f.how == AS_HOW_XREF && f.off == fn - CODE + calls);
    }
}

static void test_instructions(void) {
    static const struct {
        uint8_t n, kind, b[12];
    } cases[] = {
        {5, AS_X86_CALL, {0xe8, 1, 0, 0, 0}},
        {5, AS_X86_JMP, {0xe9, 1, 0, 0, 0}},
        {2, AS_X86_JMP, {0xeb, 1}},
        {1, AS_X86_END, {0xc3}},
        {2, AS_X86_END, {0x0f, 0x0b}},
        {2, AS_X86_END, {0xff, 0xd0}}, /* call rax */
        {6, AS_X86_END, {0xff, 0x25, 0, 0, 0, 0}}, /* jmp [rip] */
        {4, AS_X86_OTHER, {0xf3, 0x0f, 0x1e, 0xfa}}, /* endbr64 */
        {7, AS_X86_OTHER, {0x48, 0x8d, 0x35, 0, 0, 0, 0}}, /* lea rsi, [rip] */
        {10, AS_X86_OTHER, {0x49, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0}}, /* mov r8, imm64 */
        {4, AS_X86_OTHER, {0x66, 0xb8, 0, 0}}, /* mov ax, imm16 */
        {9, AS_X86_OTHER, {0x48, 0xc7, 0x44, 0x24, 8, 0, 0, 0, 0}}, /* mov qword [rsp + 8], imm32 */
        {10, AS_X86_OTHER, {0xf7, 0x83, 0, 0, 0, 0, 1, 0, 0, 0}}, /* test dword [rbx + d32], imm32 */
        {2, AS_X86_OTHER, {0xf7, 0xd8}}, /* neg eax */
        {4, AS_X86_OTHER, {0xc5, 0xf8, 0x11, 0x07}}, /* vmovups [rdi], xmm0 */
        {6, AS_X86_OTHER, {0x62, 0xf1, 0x7c, 0x48, 0x11, 0x07}}, /* vmovups [rdi], zmm0 */
        {6, AS_X86_OTHER, {0x66, 0x0f, 0x3a, 0x0f, 0xc1, 8}}, /* palignr */
        {10, AS_X86_OTHER, {0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0}}, /* nop */
        {6, AS_X86_OTHER, {0x0f, 0x84, 0, 0, 0, 0}}, /* je */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        as_x86 x = {0};
        for (size_t n = 0; n < cases[i].n; n++)
            CHECK(!as_x86_decode(cases[i].b, n, &x));
        CHECK(as_x86_decode(cases[i].b, cases[i].n, &x) && x.len == cases[i].n && x.kind == cases[i].kind);
    }
}

/* ---- damage ---- */
static void check_any(size_t n) {
    const as_want wants[2] = {WANT, GO_WANT};
    as_found f[2];
    int rc = scan_n(n, wants, 2, f);
    CHECK(rc >= AS_ELF_OK && rc <= AS_ELF_NOMEM);
    for (int i = 0; i < 2 && rc == AS_ELF_OK; i++)
        CHECK(f[i].how == AS_HOW_NONE ? f[i].reason[0] != 0 : f[i].off < n);
}

static uint64_t seed = 1;
static uint32_t rnd(uint32_t below) {
    seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(seed >> 33) % below;
}

static void test_damage(void) {
    static const uint8_t nasty[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
    for (size_t n = 0; n < FILE_SIZE; n += n < 0x200 ? 1 : 61) {
        make_calls(ET_DYN, 0, 0, 0);
        check_any(n);
    }
    for (int round = 0; round < 6000; round++) {
        uint64_t fn = make_calls(round & 1 ? ET_DYN : ET_EXEC, 0x400000, 0, round & 2);
        if (round & 4)
            add_symbol(round & 8 ? SHT_SYMTAB : SHT_DYNSYM, fn, "ssl_log_secret", 1);
        size_t limit = round % 3 == 0 ? sizeof(Elf64_Ehdr) + 2 * sizeof(Elf64_Phdr) : FILE_SIZE;
        for (uint32_t k = 0, changes = 1 + rnd(6); k < changes; k++) {
            size_t at = rnd(4) && round & 4 ? SECTIONS + rnd(0x900) : rnd((uint32_t)limit);
            image[at] = rnd(2) ? nasty[rnd(sizeof nasty)] : (uint8_t)rnd(256);
        }
        check_any(FILE_SIZE);
    }
    for (int round = 0; round < 6000; round++) {
        make_go(0x810, 0xfffffff1, round & 1 ? EM_X86_64 : EM_AARCH64, round & 2);
        for (uint32_t k = 0, changes = 1 + rnd(4); k < changes; k++)
            image[rnd(2) ? 0x810 + rnd(0x180) : rnd(CODE + 64)] = rnd(2) ? nasty[rnd(sizeof nasty)] : (uint8_t)rnd(256);
        check_any(round % 7 ? FILE_SIZE : 0x810 + rnd(0x900));
    }
}

static void test_other_files(void) {
    as_elf e;
    as_found f;
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK(as_elf_scan(&e, fd, &WANT, 1, &f) == AS_ELF_NOT_ELF);
    as_elf_close(&e);
    close(fd);
    CHECK(as_elf_scan(&e, -1, &WANT, 1, &f) == AS_ELF_IO && e.err);
    as_elf_close(&e);
    make_calls(ET_DYN, 0, 0, 0);
    ehdr()->e_ident[EI_CLASS] = ELFCLASS32;
    CHECK(scan_n(FILE_SIZE, &WANT, 1, &f) == AS_ELF_UNSUPPORTED);
}

int main(void) {
    test_symbols();
    test_xref();
    test_not_found();
    test_two_stacks();
    test_arm64();
    test_go();
    test_eh_frame_hdr();
    test_windows();
    test_instructions();
    test_damage();
    test_other_files();
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0;
}
