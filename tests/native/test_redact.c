/* SPDX-License-Identifier: MIT
 *
 * The scanner for secrets: finds each kind at every offset, stays inside its input (which ends at an unreadable page), and gives
 * the same for any text whatever stands around it in memory. The promise against the expressions is tested in Python.
 */
#include "redact.h"

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

static uint8_t *guard; /* the first unreadable byte */

static uint32_t scan(const void *p, size_t n) {
    memcpy(guard - n, p, n);
    return as_redact_scan(guard - n, n);
}

static const struct {
    const char *text;
    int kind;
} secrets[] = {
    {"sk-ant-api03-abcdefgh", AS_R_ANTHROPIC},
    {"sk-proj-abcdefghijklmnop", AS_R_OPENAI},
    {"sk-abcdefghijklmnop1234", AS_R_OPENAI},
    {"rk_live_abcdefghij", AS_R_STRIPE},
    {"ghs_abcdefghijabcdefghijabcdefghij", AS_R_GITHUB},
    {"github_pat_abcdefghijabcdefghij", AS_R_GITHUB},
    {"ASIAABCDEFGHIJKLMNOP", AS_R_AWS},
    {"AIzaabcdefghijabcdefghijabcdefghijabcde", AS_R_GOOGLE},
    {"xoxp-1234567890", AS_R_SLACK},
    {"glpat-abcdefghijklmnop", AS_R_GITLAB},
    {"hf_abcdefghijabcdefghijabcdefghij", AS_R_HUGGINGFACE},
    {"npm_abcdefghijabcdefghijabcdefghij", AS_R_NPM},
    {"eyJhbGciOiJI.eyJzdWIi", AS_R_JWT},
    {"BEARER abcdefghijklmnop", AS_R_BEARER},
    {"-----BEGIN PRIVATE KEY-----", AS_R_PEM},
    {"a://b:c@", AS_R_URL},
    {"\nAuthorization: x", AS_R_NAMED},
    {"\"api_key\":\"x", AS_R_NAMED},
    {"?key=x", AS_R_NAMED},
    {"&sig=x", AS_R_NAMED},
    {" --token x", AS_R_NAMED},
};

static void finds_at_every_offset(void) {
    char text[256];
    for (size_t i = 0; i < sizeof secrets / sizeof *secrets; i++)
        for (size_t before = 0; before < 40; before++)
            for (size_t after = 0; after < 40; after++) {
                size_t n = strlen(secrets[i].text);
                memset(text, ' ', sizeof text);
                memcpy(text + before, secrets[i].text, n);
                CHECK(scan(text, before + n + after) >> secrets[i].kind & 1);
            }
}

static void harmless(void) {
    static const char *const texts[] = {
        "task-management-system-overview",
        "https://example.com:80/a@b",
        "\"max_tokens\": 1024",
        "self.key = other[key]",
        "Sec-WebSocket-Key: x",
        "API_KEY=[REDACTED:credential]",
        "://user:[REDACTED:url-password]@h",
        "| --- | --- |",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        CHECK(scan(texts[i], strlen(texts[i])) == 0);
}

/* pieces of secrets and random bytes: nothing outside is read (the page behind is unreadable, the sanitizers watch both ends), and
 * the places are inside */
static void random_texts(void) {
    static uint8_t text[4096];
    srand(5);
    for (int round = 0; round < 20000; round++) {
        size_t n = 0, want = (size_t)rand() % 300;
        while (n < want) {
            if (rand() % 3) {
                const char *s = secrets[(size_t)rand() % (sizeof secrets / sizeof *secrets)].text;
                size_t len = strlen(s), from = (size_t)rand() % len, m = (size_t)rand() % (len - from) + 1;
                memcpy(text + n, s + from, m);
                n += m;
            } else {
                static const char odd[] = "\\\"'=: \n-_&?\xc3\xa9\0x";
                text[n++] = (uint8_t)odd[(size_t)rand() % (sizeof odd - 1)];
            }
        }
        uint8_t *copy = malloc(n ? n : 1); /* an exact allocation: AddressSanitizer sees both its ends */
        memcpy(copy, text, n);
        uint32_t mask = as_redact_scan(copy, n);
        CHECK(scan(text, n) == mask);
        size_t at[8], found = as_redact_names(copy, n, at, 8);
        CHECK((found > 0) == (mask >> AS_R_NAMED & 1));
        for (size_t i = 0; i < found && i < 8; i++)
            CHECK(at[i] < n);
        free(copy);
    }
}

int main(void) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t room = 4 * page;
    uint8_t *map = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(map + room, page, PROT_NONE))
        return 2;
    guard = map + room;
    as_redact_init();
    as_redact_init(); /* again: no change */
    finds_at_every_offset();
    harmless();
    random_texts();
    printf("redact: %d checks, %d failures\n", checks, failures);
    return failures != 0;
}
