// The server's end of the load: answers every request with a stream of ANSWER_EVENTS server-sent events.
//
// Usage: load_server CERTIFICATE_AND_KEY.pem. Prints "ready PORT" on stdout, one thread per connection; when standard input closes,
// prints one JSON line {"calls", "plain_in", "plain_out", "socket_in", "socket_out"} (bytes) and exits 0.
#include "load.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

static atomic_ulong calls, plain_in, plain_out, socket_in, socket_out;
static atomic_int open_connections;

// One SSL_write each: the head, ANSWER_EVENTS chunks, the last chunk.
struct piece {
    char *data;
    size_t length;
};
static struct piece answer[ANSWER_EVENTS + 2];
static size_t id_at; // where in the first event the call's number goes

static const char *const WORDS[] = {"The",  " function",  " reads", " a",   " record", ",",   " proves",  " its", " tag",
                                    " and", " counts",    " what",  " was", " lost",   ";",   " nothing", " is",  " guessed",
                                    ".",    "\\n\\n",     "In",     " the", " code",   " it", " stands",  " as",  " `feed()`",
                                    " and", " `flush()`", ":",      " see", " [1]",    "."};
#define WORD_COUNT (sizeof WORDS / sizeof *WORDS)

static struct piece event(const char *name, const char *json) {
    char body[2048], *data = malloc(sizeof body + 32);
    int length = snprintf(body, sizeof body, "event: %s\ndata: %s\n\n", name, json);
    if (!data || length < 0 || (size_t)length >= sizeof body)
        die("event %s does not fit", name);
    return (struct piece){data, (size_t)sprintf(data, "%x\r\n%s\r\n", (unsigned)length, body)};
}

static void build_answer(void) {
    static char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
                         "request-id: req_load\r\nTransfer-Encoding: chunked\r\n\r\n";
    static char last[] = "0\r\n\r\n";
    char json[1024];
    size_t n = 0;
    answer[n++] = (struct piece){head, sizeof head - 1};
    answer[n++] =
        event("message_start",
              "{\"type\":\"message_start\",\"message\":{\"id\":\"msg_0000000000\",\"type\":\"message\",\"role\":\"assistant\","
              "\"model\":\"claude-load-20260101\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":"
              "{\"input_tokens\":2480,\"cache_creation_input_tokens\":1024,\"cache_read_input_tokens\":16976,"
              "\"output_tokens\":1,\"service_tier\":\"standard\"}}}");
    id_at = (size_t)(strstr(answer[1].data, "msg_") + 4 - answer[1].data);
    answer[n++] = event("content_block_start",
                        "{\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}");
    for (int i = 0; i < ANSWER_DELTAS; i++) {
        snprintf(json, sizeof json,
                 "{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"%s\"}}",
                 WORDS[(size_t)i % WORD_COUNT]);
        answer[n++] = event("content_block_delta", json);
    }
    answer[n++] = event("content_block_stop", "{\"type\":\"content_block_stop\",\"index\":0}");
    snprintf(json, sizeof json,
             "{\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},"
             "\"usage\":{\"output_tokens\":%d}}",
             ANSWER_DELTAS);
    answer[n++] = event("message_delta", json);
    answer[n++] = event("message_stop", "{\"type\":\"message_stop\"}");
    answer[n++] = (struct piece){last, sizeof last - 1};
    if (n != sizeof answer / sizeof *answer)
        die("%zu pieces", n);
}

// Reads one request and copies its call number. 0 when the client has closed in place of a request.
static int read_request(SSL *ssl, char *call) {
    char buffer[BUFFER + 1];
    size_t have = 0, whole = 0;
    while (!whole || have < whole) {
        // the head must be found in the first buffer; what follows is only counted
        int got = SSL_read(ssl, buffer + (whole ? 0 : have), (int)(whole ? BUFFER : BUFFER - have));
        if (got <= 0) {
            if (have == 0 && SSL_get_error(ssl, got) == SSL_ERROR_ZERO_RETURN)
                return 0;
            die("SSL_read failed within a request");
        }
        have += (size_t)got;
        plain_in += (size_t)got;
        if (whole)
            continue;
        buffer[have] = '\0';
        char *body = strstr(buffer, "\r\n\r\n"), *length = strstr(buffer, "Content-Length: ");
        char *id = strstr(buffer, "\"call-");
        if (body && length && id && (size_t)(id - buffer) + 6 + CALL_DIGITS <= have) {
            memcpy(call, id + 6, CALL_DIGITS);
            whole = (size_t)(body + 4 - buffer) + strtoul(length + 16, NULL, 10);
        } else if (have == BUFFER) {
            die("no model call: %.60s", buffer);
        }
    }
    if (have != whole)
        die("bytes behind the request");
    return 1;
}

static void *serve(void *argument) {
    SSL *ssl = argument;
    int fd = SSL_get_fd(ssl);
    if (SSL_accept(ssl) != 1)
        die("SSL_accept failed");
    char first[2048], call[CALL_DIGITS];
    memcpy(first, answer[1].data, answer[1].length);
    while (read_request(ssl, call)) {
        memcpy(first + id_at, call, CALL_DIGITS);
        for (size_t i = 0; i < sizeof answer / sizeof *answer; i++) {
            send_all(ssl, i == 1 ? first : answer[i].data, answer[i].length);
            plain_out += answer[i].length;
        }
        calls++;
    }
    SSL_shutdown(ssl);
    socket_in += BIO_number_read(SSL_get_rbio(ssl));
    socket_out += BIO_number_written(SSL_get_wbio(ssl));
    SSL_free(ssl);
    close(fd);
    open_connections--;
    return NULL;
}

static void *accept_all(void *argument) {
    SSL_CTX *context = ((void **)argument)[0];
    int listener = *(int *)((void **)argument)[1], one = 1;
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            die("accept failed");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        SSL *ssl = SSL_new(context);
        pthread_t thread;
        open_connections++;
        if (!ssl || SSL_set_fd(ssl, fd) != 1 || pthread_create(&thread, NULL, serve, ssl) || pthread_detach(thread))
            die("cannot serve a connection");
    }
}

int main(int argc, char **argv) {
    if (argc != 2)
        die("usage: load_server CERTIFICATE_AND_KEY.pem");
    signal(SIGPIPE, SIG_IGN);
    build_answer();
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    if (!context || SSL_CTX_use_certificate_chain_file(context, argv[1]) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, argv[1], SSL_FILETYPE_PEM) != 1)
        die("no certificate in %s", argv[1]);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) || listen(listener, 512) ||
        getsockname(listener, (struct sockaddr *)&address, &length))
        die("cannot listen");
    printf("ready %d\n", ntohs(address.sin_port));
    fflush(stdout);
    pthread_t thread;
    void *arguments[] = {context, &listener};
    if (pthread_create(&thread, NULL, accept_all, arguments))
        die("no thread");
    char nothing[64];
    while (read(0, nothing, sizeof nothing) > 0)
        ;
    for (int waited = 0; open_connections && waited < 2000; waited++)
        usleep(1000);
    printf("{\"calls\":%lu,\"plain_in\":%lu,\"plain_out\":%lu,\"socket_in\":%lu,\"socket_out\":%lu}\n", calls, plain_in,
           plain_out, socket_in, socket_out);
    return open_connections != 0;
}
