// The client's end of the load: C keep-alive connections, a thread each, making model calls one after the other.
//
// Usage: load_client PORT CA.pem CONNECTIONS SECONDS [FIRST_CALL]. Every call that was begun is finished and checked (status, length, end of
// the stream). Prints one JSON line: calls, calls_per_s, seconds, first_call, bytes (plain_*, socket_*), latency of a call in ms.
#include "load.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static SSL_CTX *context;
static struct sockaddr_in address;
static pthread_barrier_t start;
static atomic_ulong next_call;
static atomic_ulong answer_length; // of the first answer: all must be as long
static double seconds, began;

static char *request;
static size_t request_length, call_at;

struct connection {
    pthread_t thread;
    unsigned long calls, plain_in, plain_out, socket_in, socket_out;
    float *latency; // ms
    size_t room;
    double ended;
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

// Prose and code as agents send them, with the escapes that these have in JSON.
static const char *const TURNS[] = {
    "Please look at src/parser.c and tell me why `parse_header()` returns -1 when the buffer ends within a line. "
    "I have tried it with gdb:\\n\\n```\\n(gdb) p *state\\n$1 = {at = 0x7ffff7d4c010 \\\"Host: loc\\\", left = 9, flags = "
    "4}\\n```\\n",
    "I read the file. The loop stops at the first byte that is no token character:\\n\\n```c\\nwhile (at < end && "
    "TOKEN[(unsigned char)*at])\\n\\tat++;\\nif (at == end)\\n\\treturn -1; /* not \\\"more\\\" */\\n```\\n\\nSo an unfinished "
    "line looks like "
    "a wrong one. It should return AGAIN and keep its place.",
    "Ja, genau. Then write a test that feeds it byte by byte, with a header such as `X-Name: caf\xc3\xa9 \xe2\x80\x94 "
    "na\xc3\xafve`, and run all.\\n",
    "Ran 214 tests in 1.83s\\n\\nFAILED (failures=1)\\n  test_split_header (tests.test_parser.ParserTest)\\n    "
    "self.assertEqual(parse(b\\\"a: "
    "b\\\\r\\\"), AGAIN)\\nAssertionError: -1 != 1\\n",
};

static void build_request(void) {
    char *body = malloc(REQUEST_BODY + 1);
    if (!body)
        die("no memory");
    size_t at = (size_t)sprintf(
        body, "%s",
        "{\"model\":\"claude-load\",\"max_tokens\":4096,\"stream\":true,\"metadata\":{\"user_id\":\"call-0000000000\"},"
        "\"system\":[{\"type\":\"text\",\"text\":\"You are a coding agent. Be exact and "
        "brief.\",\"cache_control\":{\"type\":\"ephemeral\"}}],"
        "\"tools\":[{\"name\":\"Bash\",\"description\":\"Run a shell command and give its "
        "output.\",\"input_schema\":{\"type\":\"object\","
        "\"properties\":{\"command\":{\"type\":\"string\"},\"timeout\":{\"type\":\"integer\"}},\"required\":[\"command\"]}},{"
        "\"name\":\"Read\","
        "\"description\":\"Read a "
        "file.\",\"input_schema\":{\"type\":\"object\",\"properties\":{\"path\":{\"type\":\"string\"}},\"required\":"
        "[\"path\"]}}],\"messages\":[");
    static const char tail[] = "\"}]}]}";
    for (unsigned i = 0;; i++) {
        const char *text = TURNS[i % 4], *role = i % 2 ? "assistant" : "user";
        char turn[4096];
        size_t length =
            (size_t)snprintf(turn, sizeof turn, "{\"role\":\"%s\",\"content\":[{\"type\":\"text\",\"text\":\"(%u) %s%s%s\"}]},",
                             role, i, text, text, text);
        if (at + length + sizeof turn > REQUEST_BODY)
            break;
        memcpy(body + at, turn, length);
        at += length;
    }
    at += (size_t)sprintf(body + at, "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"Go on. ");
    size_t fill = REQUEST_BODY - at - (sizeof tail - 1);
    for (size_t i = 0; i < fill; i++)
        body[at + i] = "Check each of the remaining functions in the same way, please. "[i % 63];
    memcpy(body + at + fill, tail, sizeof tail);
    request = malloc(REQUEST_BODY + 1024);
    if (!request)
        die("no memory");
    request_length =
        (size_t)sprintf(request,
                        "POST /v1/messages?beta=true HTTP/1.1\r\nHost: localhost:%d\r\nAccept: application/json\r\n"
                        "Content-Type: application/json\r\nanthropic-version: 2023-06-01\r\nx-api-key: sk-ant-load\r\n"
                        "User-Agent: load/1\r\nContent-Length: %d\r\n\r\n%s",
                        ntohs(address.sin_port), REQUEST_BODY, body);
    call_at = (size_t)(strstr(request, "\"call-") + 6 - request);
    free(body);
}

// Reads one answer to its last chunk and checks it.
static unsigned long read_answer(SSL *ssl) {
    static const char end[] = "\r\n0\r\n\r\n";
    char buffer[BUFFER], tail[sizeof end - 1] = {0};
    unsigned long length = 0;
    do {
        int got = SSL_read(ssl, buffer, BUFFER);
        if (got <= 0)
            die("SSL_read failed within an answer");
        if (length == 0 && (got < 12 || memcmp(buffer, "HTTP/1.1 200", 12) != 0))
            die("not answered with 200");
        length += (unsigned long)got;
        size_t fresh = (size_t)got < sizeof tail ? (size_t)got : sizeof tail;
        memmove(tail, tail + fresh, sizeof tail - fresh);
        memcpy(tail + sizeof tail - fresh, buffer + got - fresh, fresh);
    } while (memcmp(tail, end, sizeof tail) != 0);
    unsigned long expected = 0;
    if (!atomic_compare_exchange_strong(&answer_length, &expected, length) && expected != length)
        die("an answer of %lu bytes after one of %lu", length, expected);
    return length;
}

static void *run(void *argument) {
    struct connection *self = argument;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    char *mine = malloc(request_length);
    SSL *ssl = SSL_new(context);
    if (fd < 0 || !mine || !ssl || connect(fd, (struct sockaddr *)&address, sizeof address))
        die("cannot connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    memcpy(mine, request, request_length);
    SSL_set_tlsext_host_name(ssl, "localhost");
    if (SSL_set1_host(ssl, "localhost") != 1 || SSL_set_fd(ssl, fd) != 1 || SSL_connect(ssl) != 1)
        die("SSL_connect failed");
    pthread_barrier_wait(&start); // all are connected
    pthread_barrier_wait(&start); // the clock runs
    double stop = began + seconds;
    for (double t = now(); t < stop;) {
        char digits[CALL_DIGITS + 1];
        snprintf(digits, sizeof digits, "%0*lu", CALL_DIGITS, next_call++ % 10000000000UL);
        memcpy(mine + call_at, digits, CALL_DIGITS);
        send_all(ssl, mine, request_length);
        self->plain_out += request_length;
        self->plain_in += read_answer(ssl);
        double done = now();
        if (self->calls == self->room) {
            self->room = self->room ? self->room * 2 : 1024;
            self->latency = realloc(self->latency, self->room * sizeof *self->latency);
            if (!self->latency)
                die("no memory");
        }
        self->latency[self->calls++] = (float)((done - t) * 1e3);
        t = done;
    }
    self->ended = now();
    SSL_shutdown(ssl);
    self->socket_in = BIO_number_read(SSL_get_rbio(ssl));
    self->socket_out = BIO_number_written(SSL_get_wbio(ssl));
    SSL_free(ssl);
    close(fd);
    free(mine);
    return NULL;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 5 && argc != 6)
        die("usage: load_client PORT CA.pem CONNECTIONS SECONDS [FIRST_CALL]");
    signal(SIGPIPE, SIG_IGN);
    address = (struct sockaddr_in){.sin_family = AF_INET,
                                   .sin_port = htons((unsigned short)number(argv[1], "PORT", 1, 65535)),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    unsigned connections = (unsigned)number(argv[3], "CONNECTIONS", 1, 1000);
    seconds = (double)number(argv[4], "SECONDS", 1, 3600);
    unsigned long first = argc == 6 ? (unsigned long)number(argv[5], "FIRST_CALL", 0, 9000000000) : 0;
    next_call = first;
    context = SSL_CTX_new(TLS_client_method());
    if (!context || SSL_CTX_load_verify_locations(context, argv[2], NULL) != 1)
        die("no CA in %s", argv[2]);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    build_request();

    struct connection *all = calloc(connections, sizeof *all);
    if (!all || pthread_barrier_init(&start, NULL, connections + 1))
        die("no memory");
    for (unsigned i = 0; i < connections; i++)
        if (pthread_create(&all[i].thread, NULL, run, &all[i]))
            die("no thread");
    pthread_barrier_wait(&start);
    began = now();
    pthread_barrier_wait(&start);
    struct connection sum = {0};
    double ended = began;
    for (unsigned i = 0; i < connections; i++) {
        pthread_join(all[i].thread, NULL);
        sum.calls += all[i].calls;
        sum.plain_in += all[i].plain_in;
        sum.plain_out += all[i].plain_out;
        sum.socket_in += all[i].socket_in;
        sum.socket_out += all[i].socket_out;
        ended = all[i].ended > ended ? all[i].ended : ended;
    }
    float *latency = malloc((sum.calls + 1) * sizeof *latency);
    size_t n = 0;
    for (unsigned i = 0; latency && i < connections; i++) {
        if (all[i].calls)
            memcpy(latency + n, all[i].latency, all[i].calls * sizeof *latency);
        n += all[i].calls;
    }
    if (!latency || n == 0)
        die("no calls");
    qsort(latency, n, sizeof *latency, by_value);
    printf("{\"calls\":%lu,\"calls_per_s\":%.1f,\"seconds\":%.3f,\"connections\":%u,\"first_call\":%lu,\"plain_in\":%lu,"
           "\"plain_out\":%lu,\"socket_in\":%lu,\"socket_out\":%lu,\"ms_median\":%.3f,\"ms_p99\":%.3f}\n",
           sum.calls, (double)sum.calls / (ended - began), ended - began, connections, first, sum.plain_in, sum.plain_out,
           sum.socket_in, sum.socket_out, (double)latency[n / 2], (double)latency[n * 99 / 100]);
    return 0;
}
