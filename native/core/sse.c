/* SPDX-License-Identifier: MIT
 *
 * Server-sent events; see sse.h. Lines are found with memchr, and data is copied only when an event has several data lines or
 * spans pieces.
 */
#include "sse.h"

/* ---- how model APIs end a stream: the one place to add to ---- */
#define LITERAL(s) {(const uint8_t *)(s), sizeof(s) - 1}
static const as_slice terminator_data[] = {LITERAL("[DONE]")}; /* OpenAI Chat Completions and all that copy it */
static const as_slice terminator_type[] = {     /* event name, or "type" at the start of the data where there is no name */
                                           LITERAL("message_stop"),                                  /* Anthropic Messages */
                                           LITERAL("response.completed"), LITERAL("response.incomplete"), /* OpenAI */
                                           LITERAL("response.failed")};                              /* Responses */

static const as_slice unnamed = LITERAL("message");

static int same(as_slice a, as_slice b) {
    return a.n == b.n && !memcmp(a.p, b.p, b.n);
}

static const uint8_t *skip_blank(const uint8_t *p, const uint8_t *end) {
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r'))
        p++;
    return p;
}

/* The value of "type" when it is the first member of a JSON object; only such a place can be read without parsing JSON. */
static as_slice leading_type(as_slice d) {
    as_slice none = {NULL, 0};
    const uint8_t *end = d.p + d.n, *p = skip_blank(d.p, end);
    if (p == end || *p++ != '{')
        return none;
    p = skip_blank(p, end);
    if (end - p < 6 || memcmp(p, "\"type\"", 6) != 0)
        return none;
    p = skip_blank(p + 6, end);
    if (p == end || *p++ != ':')
        return none;
    p = skip_blank(p, end);
    if (p == end || *p++ != '"')
        return none;
    const uint8_t *q = memchr(p, '"', (size_t)(end - p));
    return q ? (as_slice){p, (size_t)(q - p)} : none;
}

int as_sse_is_terminator(const as_sse_ev *ev) {
    for (size_t i = 0; i < sizeof terminator_data / sizeof *terminator_data; i++)
        if (same(ev->data, terminator_data[i]))
            return 1;
    as_slice type = same(ev->event, unnamed) && ev->data.n ? leading_type(ev->data) : ev->event;
    for (size_t i = 0; i < sizeof terminator_type / sizeof *terminator_type; i++)
        if (same(type, terminator_type[i]))
            return 1;
    return 0;
}

void as_sse_init(as_sse *s, as_budget *budget, size_t max_event) {
    memset(s, 0, sizeof *s);
    s->budget = budget;
    s->max_event = max_event ? max_event : AS_SSE_MAX_EVENT;
    s->retry = -1;
}

static void settle(as_sse *s) /* charge the memory we hold now to the budget */
{
    uint64_t now = s->line.cap + s->data.cap + s->name.cap + s->id.cap;
    if (s->budget)
        s->budget->used += (size_t)now - (size_t)s->held;
    s->held = now;
}

void as_sse_free(as_sse *s) {
    as_hbuf_free(&s->line);
    as_hbuf_free(&s->data);
    as_hbuf_free(&s->name);
    as_hbuf_free(&s->id);
    settle(s);
}

/* Append to an owned buffer, up to `max` bytes and what the budget allows. 0 when something was left out. */
static int keep(as_sse *s, as_hbuf *b, const uint8_t *p, size_t n, size_t max) {
    size_t room = b->n < max ? max - b->n : 0;
    int whole = n <= room;
    if (!whole)
        n = room;
    if (b->n + n > b->cap) {
        size_t more = b->n + n - b->cap;
        if (s->budget && (s->budget->used > s->budget->max || more > s->budget->max - s->budget->used)) {
            s->budget->refused += n;
            return 0;
        }
        if (!as_hbuf_add(b, p, n))
            return 0;
        settle(s);
        return whole;
    }
    return as_hbuf_add(b, p, n) && whole;
}

static void reset_event(as_sse *s) {
    s->has_data = s->over = 0;
    s->d_own = s->ev_own = 0;
    s->d = s->ev = (as_slice){NULL, 0};
    s->data.n = s->name.n = 0;
    if (s->data.cap > 65536) {
        as_hbuf_free(&s->data);
        settle(s);
    }
}

static void dispatch(as_sse *s, uint64_t ts, int truncated, as_sse_cb cb, void *u) {
    if (s->has_data) {
        as_sse_ev ev = {.event = s->ev.n ? s->ev : unnamed,
                        .data = s->d,
                        .id = {s->id.p, s->id.n},
                        .retry = s->retry,
                        .ts = ts,
                        .index = s->index++,
                        .truncated = truncated || s->over,
                        .after_gap = s->after_gap};
        s->oversize += s->over;
        s->retry = -1;
        s->after_gap = 0;
        if (cb)
            cb(u, &ev);
    }
    reset_event(s);
}

static void own_data(as_sse *s) /* data that lies in the piece moves into our buffer */
{
    if (s->has_data && !s->d_own) {
        s->data.n = 0;
        if (!keep(s, &s->data, s->d.p, s->d.n, s->max_event))
            s->over = 1;
        s->d_own = 1;
        s->d = (as_slice){s->data.p, s->data.n};
    }
}

static void own_name(as_sse *s) {
    if (s->ev.n && !s->ev_own) {
        s->name.n = 0;
        (void)keep(s, &s->name, s->ev.p, s->ev.n, AS_SSE_MAX_NAME);
        s->ev_own = 1;
        s->ev = (as_slice){s->name.p, s->name.n};
    }
}

static void add_data(as_sse *s, as_slice v, int borrowed) {
    if (!s->has_data && borrowed) {
        s->has_data = 1;
        if (v.n > s->max_event) {
            v.n = s->max_event;
            s->over = 1;
        }
        s->d = v;
        return;
    }
    own_data(s);
    if (s->has_data && !keep(s, &s->data, (const uint8_t *)"\n", 1, s->max_event))
        s->over = 1;
    if (!keep(s, &s->data, v.p, v.n, s->max_event))
        s->over = 1;
    s->has_data = s->d_own = 1;
    s->d = (as_slice){s->data.p, s->data.n};
}

static int is_field(const uint8_t *p, size_t n, const char *name, size_t len) {
    return n >= len && !memcmp(p, name, len) && (n == len || p[len] == ':');
}

static as_slice field_value(const uint8_t *p, size_t n, size_t len) {
    size_t at = n > len ? len + 1 : len;
    if (at < n && p[at] == ' ')
        at++;
    return (as_slice){p + at, n - at};
}

/* One line, without its end. `borrowed`: it lies in the piece and stays until the piece ends. */
static void line(as_sse *s, const uint8_t *p, size_t n, int borrowed, uint64_t ts, as_sse_cb cb, void *u) {
    if (!n) {
        s->resync = 0;
        dispatch(s, ts, 0, cb, u);
        return;
    }
    if (s->resync) { /* the first line behind a hole: only what is a field for certain; "data" in the middle of a text is not */
        static const char *const known[] = {"data:", "event:", "id:", "retry:", ":"};
        int ok = 0;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            ok |= n >= strlen(known[i]) && !memcmp(p, known[i], strlen(known[i]));
        s->resync = 0;
        if (!ok)
            return;
    }
    if (is_field(p, n, "data", 4)) {
        add_data(s, field_value(p, n, 4), borrowed);
        if (s->line_over)
            s->over = 1;
    } else if (is_field(p, n, "event", 5)) {
        s->ev = field_value(p, n, 5);
        if (s->ev.n > AS_SSE_MAX_NAME)
            s->ev.n = AS_SSE_MAX_NAME;
        s->ev_own = 0;
        if (!borrowed)
            own_name(s);
    } else if (is_field(p, n, "id", 2)) {
        as_slice v = field_value(p, n, 2);
        if (!v.n || !memchr(v.p, 0, v.n)) { /* an id with NUL is ignored */
            s->id.n = 0;
            (void)keep(s, &s->id, v.p, v.n, AS_SSE_MAX_NAME);
        }
    } else if (is_field(p, n, "retry", 5)) {
        as_slice v = field_value(p, n, 5);
        int64_t r = 0;
        size_t i = 0;
        for (; i < v.n && v.p[i] >= '0' && v.p[i] <= '9'; i++)
            r = r > (INT64_MAX - 9) / 10 ? INT64_MAX / 10 - 1 : r * 10 + (v.p[i] - '0'); /* saturates, does not overflow */
        if (v.n && i == v.n)
            s->retry = r;
    }
}

static const uint8_t *find(const uint8_t *p, const uint8_t *end, int c) {
    const uint8_t *q = memchr(p, c, (size_t)(end - p));
    return q ? q : end;
}

static void keep_line(as_sse *s, const uint8_t *p, size_t n) {
    if (!keep(s, &s->line, p, n, s->max_event + AS_SSE_MAX_NAME)) /* a field's name fits beside its value */
        s->line_over = 1;
}

void as_sse_feed(as_sse *s, const uint8_t *p, size_t n, uint64_t ts, as_sse_cb cb, void *u) {
    static const uint8_t bom[3] = {0xef, 0xbb, 0xbf};
    const uint8_t *start = p, *end = p + n;
    while (s->bom < 3 && p < end) {
        if (*p == bom[s->bom]) {
            s->bom++;
            p++;
        } else {
            keep_line(s, bom, s->bom); /* it was no BOM: its first bytes belong to the first line */
            s->bom = 3;
        }
    }
    const uint8_t *lf = NULL, *cr = NULL; /* the next LF, and the next CR before it (or lf itself); both only move on */
    while (p < end) {
        if (s->skip_lf) {
            s->skip_lf = 0;
            if (*p == '\n') {
                p++;
                continue;
            }
        }
        if (!lf || lf < p) {
            lf = find(p, end, '\n');
            cr = NULL;
        }
        if (!cr || cr < p)
            cr = find(p, lf, '\r');
        const uint8_t *e = cr;
        if (e == end) {
            keep_line(s, p, (size_t)(end - p));
            break;
        }
        s->taken = (size_t)(e + 1 - start);
        if (s->line.n || s->line_over) {
            keep_line(s, p, (size_t)(e - p));
            line(s, s->line.p, s->line.n, 0, ts, cb, u);
            s->line.n = 0;
            s->line_over = 0;
            if (s->line.cap > 65536) {
                as_hbuf_free(&s->line);
                settle(s);
            }
        } else {
            line(s, p, (size_t)(e - p), 1, ts, cb, u);
        }
        s->skip_lf = *e == '\r';
        p = e + 1;
    }
    own_data(s);
    own_name(s);
}

/* Cheap test for "this is a whole JSON text": the brackets at both ends. */
static int looks_whole(as_slice d) {
    if (!d.n)
        return 0;
    const uint8_t *end = d.p + d.n;
    const uint8_t *p = skip_blank(d.p, end);
    while (end > p && (end[-1] == ' ' || end[-1] == '\t' || end[-1] == '\n' || end[-1] == '\r'))
        end--;
    return end - p >= 2 && ((*p == '{' && end[-1] == '}') || (*p == '[' && end[-1] == ']'));
}

static void cut(as_sse *s, uint64_t ts, as_sse_cb cb, void *u) {
    if (s->has_data && looks_whole(s->d))
        dispatch(s, ts, 1, cb, u);
    else
        reset_event(s);
    s->line.n = 0;
    s->line_over = 0;
}

void as_sse_gap(as_sse *s, uint64_t ts, as_sse_cb cb, void *u) {
    cut(s, ts, cb, u);
    s->after_gap = 1;
    s->resync = 1;
    s->skip_lf = 0;
    s->bom = 3;
}

void as_sse_end(as_sse *s, uint64_t ts, as_sse_cb cb, void *u) {
    if (s->line.n)
        line(s, s->line.p, s->line.n, 0, ts, cb, u);
    cut(s, ts, cb, u);
}
