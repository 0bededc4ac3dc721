/* SPDX-License-Identifier: MIT
 * See elffile.h.
 */
#include "elffile.h"
#include "vec16.h"

#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define STRING_HITS 64 /* places in one string table that can hold a wanted name */

const char *as_elf_strstatus(int status) {
    static const char *const text[] = {"ok",
                                       "cannot be read",
                                       "no ELF file",
                                       "not a 64-bit x86-64 or arm64 program or library",
                                       "damaged ELF headers",
                                       "too large to be searched",
                                       "out of memory"};
    return status >= 0 && status <= AS_ELF_NOMEM ? text[status] : "unknown";
}

int as_elf_read(as_elf *e, void *buf, size_t n, uint64_t off) {
    if (off > e->size || n > e->size - off)
        return AS_ELF_DAMAGED;
    if (n > e->budget)
        return AS_ELF_BUDGET_SPENT;
    e->budget -= n;
    for (size_t done = 0; done < n;) {
        ssize_t r = pread(e->fd, (char *)buf + done, n - done, (off_t)(off + done));
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0) { /* 0: the file shrank since fstat */
            e->err = r < 0 ? errno : EIO;
            return AS_ELF_IO;
        }
        done += (size_t)r;
    }
    return AS_ELF_OK;
}

static void read_build_id(as_elf *e, uint64_t off, uint64_t size) {
    uint8_t notes[4096];
    size_t n = size < sizeof notes ? (size_t)size : sizeof notes;
    if (e->build_id_len || as_elf_read(e, notes, n, off) != AS_ELF_OK)
        return;
    for (size_t i = 0; i + sizeof(Elf64_Nhdr) <= n;) {
        Elf64_Nhdr h;
        memcpy(&h, notes + i, sizeof h);
        i += sizeof h;
        size_t name = ((size_t)h.n_namesz + 3) & ~(size_t)3, desc = ((size_t)h.n_descsz + 3) & ~(size_t)3;
        if (name > n - i || desc > n - i - name)
            return;
        if (h.n_type == NT_GNU_BUILD_ID && h.n_namesz == 4 && !memcmp(notes + i, "GNU", 4) && h.n_descsz <= sizeof e->build_id) {
            memcpy(e->build_id, notes + i + name, h.n_descsz);
            e->build_id_len = h.n_descsz;
            return;
        }
        i += name + desc;
    }
}

static int read_segments(as_elf *e, const Elf64_Ehdr *h) {
    if (h->e_phentsize != sizeof(Elf64_Phdr) || !h->e_phnum)
        return AS_ELF_DAMAGED;
    uint64_t loaded = 0;
    for (uint32_t i = 0; i < h->e_phnum; i++) {
        Elf64_Phdr p;
        uint64_t at = h->e_phoff + (uint64_t)i * sizeof p;
        if (at < h->e_phoff)
            return AS_ELF_DAMAGED;
        int rc = as_elf_read(e, &p, sizeof p, at);
        if (rc != AS_ELF_OK)
            return rc;
        if (p.p_offset > e->size)
            continue;
        uint64_t n = p.p_filesz < e->size - p.p_offset ? p.p_filesz : e->size - p.p_offset;
        if (p.p_vaddr > UINT64_MAX - n)
            continue;
        if (p.p_type == PT_LOAD && n && e->n_seg < AS_ELF_MAX_SEG) {
            e->seg[e->n_seg++] = (as_elf_seg){p.p_offset, p.p_vaddr, n, p.p_flags};
            loaded += n;
        } else if (p.p_type == PT_GNU_EH_FRAME) {
            e->eh_off = p.p_offset;
            e->eh_va = p.p_vaddr;
            e->eh_size = n;
        } else if (p.p_type == PT_NOTE) {
            read_build_id(e, p.p_offset, n);
        }
    }
    /* segments may share a page or so, not be laid over each other to make us read the file a hundred times; a file that holds only
     * the symbols of another may have none */
    if ((!e->n_seg && !h->e_shoff) || loaded > 2 * e->size + (1u << 20))
        return AS_ELF_DAMAGED;
    return AS_ELF_OK;
}

int as_elf_open(as_elf *e, int fd) {
    memset(e, 0, sizeof *e);
    e->fd = fd;
    e->budget = AS_ELF_BUDGET;
    struct stat st;
    if (fstat(fd, &st)) {
        e->err = errno;
        return AS_ELF_IO;
    }
    Elf64_Ehdr h;
    if (!S_ISREG(st.st_mode) || st.st_size < (off_t)sizeof h)
        return AS_ELF_NOT_ELF;
    e->size = (uint64_t)st.st_size;
    int rc = as_elf_read(e, &h, sizeof h, 0);
    if (rc != AS_ELF_OK)
        return rc;
    if (memcmp(h.e_ident, ELFMAG, SELFMAG))
        return AS_ELF_NOT_ELF;
    if (h.e_ident[EI_CLASS] != ELFCLASS64 || h.e_ident[EI_DATA] != ELFDATA2LSB ||
        (h.e_machine != AS_ELF_X86_64 && h.e_machine != AS_ELF_AARCH64) || (h.e_type != ET_EXEC && h.e_type != ET_DYN))
        return AS_ELF_UNSUPPORTED;
    e->machine = h.e_machine;
    e->type = h.e_type;
    rc = read_segments(e, &h);
    if (rc != AS_ELF_OK)
        return rc;
    /* no section headers is no fault: strip can remove them */
    if (h.e_shoff && h.e_shentsize == sizeof(Elf64_Shdr) && h.e_shoff < e->size) {
        uint64_t room = (e->size - h.e_shoff) / sizeof(Elf64_Shdr), n = h.e_shnum;
        Elf64_Shdr first;
        if (!n && as_elf_read(e, &first, sizeof first, h.e_shoff) == AS_ELF_OK)
            n = first.sh_size;
        e->shoff = h.e_shoff;
        n = n < room ? n : room;
        e->n_sections = (uint32_t)(n < AS_ELF_MAX_SECTION ? n : AS_ELF_MAX_SECTION);
        e->names = h.e_shstrndx;
    }
    e->window = malloc(AS_ELF_WINDOW + 2 * AS_ELF_PAD);
    return e->window ? AS_ELF_OK : AS_ELF_NOMEM;
}

void as_elf_close(as_elf *e) {
    free(e->window);
    e->window = NULL;
}

uint64_t as_elf_offset(const as_elf *e, uint64_t va, uint32_t want_flags) {
    for (uint32_t i = 0; i < e->n_seg; i++) {
        const as_elf_seg *s = &e->seg[i];
        if ((s->flags & want_flags) == want_flags && va >= s->va && va - s->va < s->filesz)
            return va - s->va + s->off;
    }
    return UINT64_MAX;
}

/* ---- byte strings, at memory speed: every position is compared with the first two bytes of each pattern ---- */
#define PAIRS_MAX 16

typedef struct pairs {
    uint32_t n; /* 0: too many to filter by */
    uint8_t a[PAIRS_MAX], b[PAIRS_MAX];
} pairs;

/* which of the 16 positions from p on begin like a pattern; reads 17 bytes */
static inline uint32_t candidates(const uint8_t *p, const pairs *f) {
    v16 hit = {0}, x = load16(p), y = load16(p + 1);
    for (uint32_t i = 0; i < f->n; i++)
        hit |= (v16)((x == all16(f->a[i])) & (y == all16(f->b[i])));
    return mask16(hit);
}

/* the patterns that are at position p of the n bytes; 1: enough */
static int check_position(const uint8_t *buf, size_t p, size_t n, const as_pat *pats, uint32_t n_pats, uint64_t off,
                          as_pat_hit hit, void *ctx) {
    for (uint32_t i = 0; i < n_pats; i++)
        if (buf[p] == pats[i].s[0] && buf[p + 1] == pats[i].s[1] && pats[i].n <= n - p &&
            !memcmp(buf + p, pats[i].s, pats[i].n) && hit(ctx, i, off + p))
            return 1;
    return 0;
}

int as_elf_find(as_elf *e, uint64_t off, uint64_t size, const as_pat *pats, uint32_t n_pats, as_pat_hit hit, void *ctx) {
    pairs f = {0};
    size_t longest = 0;
    for (uint32_t i = 0; i < n_pats; i++) {
        uint32_t k = 0;
        longest = pats[i].n > longest ? pats[i].n : longest;
        while (k < f.n && (f.a[k] != pats[i].s[0] || f.b[k] != pats[i].s[1]))
            k++;
        if (k == PAIRS_MAX) {
            f.n = 0;
            break;
        }
        f.a[k] = pats[i].s[0];
        f.b[k] = pats[i].s[1];
        f.n = k == f.n ? k + 1 : f.n;
    }
    if (off > e->size || size > e->size - off || !n_pats || n_pats > AS_PATS_MAX || longest > AS_PAT_MAX)
        return AS_ELF_DAMAGED;
    /* each window ends with the first longest - 1 bytes of the next one */
    for (uint64_t done = 0; done < size;) {
        uint64_t left = size - done;
        size_t step = left < AS_ELF_WINDOW ? (size_t)left : AS_ELF_WINDOW;
        size_t n = left - step < longest - 1 ? (size_t)left : step + longest - 1;
        int rc = as_elf_read(e, e->window, n, off + done);
        if (rc != AS_ELF_OK)
            return rc;
        memset(e->window + n, 0, AS_ELF_PAD);
        for (size_t p = 0; p < step; p += 16) {
            for (uint32_t m = f.n ? candidates(e->window + p, &f) : 0xffff; m; m &= m - 1) {
                size_t q = p + (size_t)__builtin_ctz(m);
                if (q < step && check_position(e->window, q, n, pats, n_pats, off + done, hit, ctx))
                    return AS_ELF_OK;
            }
        }
        done += step;
    }
    return AS_ELF_OK;
}

/* ---- symbols ---- */
typedef struct names_found {
    uint32_t n, id[STRING_HITS];
    uint64_t at[STRING_HITS];
} names_found;

static int name_hit(void *ctx, uint32_t id, uint64_t off) {
    names_found *f = ctx;
    f->id[f->n] = id;
    f->at[f->n++] = off;
    return f->n == STRING_HITS;
}

static void take_symbol(const as_elf *image, const Elf64_Sym *s, const names_found *f, uint64_t str_off, as_elf_sym *out) {
    uint32_t type = ELF64_ST_TYPE(s->st_info);
    if ((type != STT_FUNC && type != STT_NOTYPE) || s->st_shndx == SHN_UNDEF)
        return;
    for (uint32_t k = 0; k < f->n; k++) {
        if (f->at[k] - str_off != s->st_name)
            continue;
        uint64_t off = as_elf_offset(image, s->st_value, PF_X);
        as_elf_sym *o = &out[f->id[k]];
        if (off == UINT64_MAX || (o->n && o->va == s->st_value))
            continue;
        *o = (as_elf_sym){s->st_value, off, o->n + 1};
    }
}

static int search_table(as_elf *e, const as_elf *image, const Elf64_Shdr *t, const as_pat *names, uint32_t n, as_elf_sym *out) {
    Elf64_Shdr str;
    if (t->sh_link >= e->n_sections)
        return AS_ELF_OK;
    int rc = as_elf_read(e, &str, sizeof str, e->shoff + t->sh_link * sizeof str);
    if (rc != AS_ELF_OK)
        return rc;
    if (str.sh_type != SHT_STRTAB || str.sh_offset > e->size || str.sh_size > e->size - str.sh_offset ||
        t->sh_entsize != sizeof(Elf64_Sym) || t->sh_offset > e->size || t->sh_size > e->size - t->sh_offset)
        return AS_ELF_OK;
    names_found f = {0};
    rc = as_elf_find(e, str.sh_offset, str.sh_size, names, n, name_hit, &f);
    if (rc != AS_ELF_OK || !f.n)
        return rc;
    size_t per_window = AS_ELF_WINDOW / sizeof(Elf64_Sym);
    for (uint64_t i = 0, total = t->sh_size / sizeof(Elf64_Sym); i < total;) {
        size_t k = total - i < per_window ? (size_t)(total - i) : per_window;
        rc = as_elf_read(e, e->window, k * sizeof(Elf64_Sym), t->sh_offset + i * sizeof(Elf64_Sym));
        if (rc != AS_ELF_OK)
            return rc;
        for (size_t j = 0; j < k; j++) {
            Elf64_Sym s;
            memcpy(&s, e->window + j * sizeof s, sizeof s);
            take_symbol(image, &s, &f, str.sh_offset, out);
        }
        i += k;
    }
    return AS_ELF_OK;
}

int as_elf_symbols(as_elf *e, const as_elf *image, uint32_t table, const as_pat *names, uint32_t n, as_elf_sym *out) {
    memset(out, 0, n * sizeof *out);
    for (uint32_t i = 0; i < e->n_sections; i++) {
        Elf64_Shdr s;
        int rc = as_elf_read(e, &s, sizeof s, e->shoff + (uint64_t)i * sizeof s);
        if (rc != AS_ELF_OK)
            return rc;
        if (s.sh_type == table) /* there is at most one of each kind (gABI), more are not looked at */
            return search_table(e, image, &s, names, n, out);
    }
    return AS_ELF_OK;
}

/* ---- function starts ---- */
/* Whether the frame description at address fde, of code from `start` on, covers va. 1, 0, or -1: not in the usual encoding. */
static int fde_covers(as_elf *e, uint64_t fde, uint64_t start, uint64_t va) {
    struct {
        uint32_t length, cie;
        int32_t begin; /* relative to itself */
        uint32_t range;
    } f;
    uint64_t off = as_elf_offset(e, fde, PF_R);
    if (off == UINT64_MAX || as_elf_read(e, &f, sizeof f, off) != AS_ELF_OK)
        return -1;
    if (f.length < 12 || f.length >= 0xfffffff0 || !f.cie || fde + 8 + (uint64_t)(int64_t)f.begin != start)
        return -1;
    return va - start < f.range;
}

/* .eh_frame_hdr (LSB core, 10.6.2): a table of (start, fde) sorted by start, both relative to the header. 1: va is a start; 0: it
 * lies inside a function; -1: nothing is known of it (no table that we read, or code without frame descriptions). *start: of the
 * function, for 0 and 1. */
static int in_eh_table(as_elf *e, uint64_t va, uint64_t *start) {
    uint8_t h[12];
    if (e->eh_size < sizeof h || as_elf_read(e, h, sizeof h, e->eh_off) != AS_ELF_OK)
        return -1;
    /* version 1, eh_frame pointer of four bytes, count udata4, table datarel sdata4: what every linker writes */
    if (h[0] != 1 || (h[1] & 0x0f) != 0x0b || h[2] != 0x03 || h[3] != 0x3b)
        return -1;
    uint32_t count;
    memcpy(&count, h + 8, 4);
    if (!count || count > (e->eh_size - sizeof h) / 8)
        return -1;
    int64_t want = (int64_t)(va - e->eh_va);
    int32_t row[2], before[2] = {0, 0};
    uint32_t lo = 0;
    for (uint32_t hi = count; lo < hi;) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (as_elf_read(e, row, sizeof row, e->eh_off + sizeof h + (uint64_t)mid * 8) != AS_ELF_OK)
            return -1;
        if (row[0] == want) {
            *start = va;
            return 1;
        }
        if (row[0] < want) {
            lo = mid + 1;
            memcpy(before, row, sizeof row);
        } else {
            hi = mid;
        }
    }
    if (!lo)
        return -1;
    *start = e->eh_va + (uint64_t)(int64_t)before[0];
    int covered = fde_covers(e, e->eh_va + (uint64_t)(int64_t)before[1], *start, va);
    return covered == 1 ? 0 : -1;
}

static int begins_like_function(as_elf *e, uint64_t va) {
    static const struct {
        uint8_t n, s[4];
    } first[] = {{4, {0xf3, 0x0f, 0x1e, 0xfa}}, /* endbr64 */
                 {1, {0x55}},                   /* push rbp */
                 {2, {0x41, 0x54}},             /* push r12 */
                 {2, {0x41, 0x55}},
                 {2, {0x41, 0x56}},
                 {2, {0x41, 0x57}},
                 {1, {0x53}},              /* push rbx */
                 {3, {0x48, 0x83, 0xec}},  /* sub rsp, imm8 */
                 {3, {0x48, 0x81, 0xec}}}; /* sub rsp, imm32 */
    uint8_t code[4];
    uint64_t off = as_elf_offset(e, va, PF_X);
    if (off == UINT64_MAX || as_elf_read(e, code, sizeof code, off) != AS_ELF_OK)
        return 0;
    for (size_t i = 0; i < sizeof first / sizeof first[0]; i++)
        if (!memcmp(code, first[i].s, first[i].n))
            return 1;
    return 0;
}

/* arm64: an instruction that functions begin with, or one that none goes on behind stands before it */
static int begins_like_function_a64(as_elf *e, uint64_t va) {
    uint32_t code[2];
    uint64_t off = as_elf_offset(e, va, PF_X);
    if (va % 4 || off < 4 || off == UINT64_MAX || as_elf_read(e, code, sizeof code, off - 4) != AS_ELF_OK)
        return 0;
    uint32_t before = code[0], first = code[1];
    return first == 0xd503233f || first == 0xd503237f || (first & 0xffffff3f) == 0xd503241f || /* paciasp, pacibsp, bti */
           (first & 0xffc07fff) == 0xa9807bfd ||
           (first & 0xff8003ff) == 0xd10003ff || /* stp x29, x30, [sp, #-n]!; sub sp, sp, #n */
           (first & 0xffc003e0) == 0xa98003e0 ||                                       /* stp of others, the same way */
           before == 0xd65f03c0 || before == 0 || before == 0xd503201f;                /* ret, padding, nop */
}

int as_elf_is_function(as_elf *e, uint64_t va) {
    if (as_elf_offset(e, va, PF_X) == UINT64_MAX)
        return 0;
    uint64_t start;
    int known = in_eh_table(e, va, &start);
    if (known >= 0)
        return known;
    return e->machine == AS_ELF_AARCH64 ? begins_like_function_a64(e, va) : va % 16 == 0 || begins_like_function(e, va);
}

uint64_t as_elf_function_at(as_elf *e, uint64_t va) {
    uint64_t start;
    return as_elf_offset(e, va, PF_X) != UINT64_MAX && in_eh_table(e, va, &start) >= 0 ? start : 0;
}
