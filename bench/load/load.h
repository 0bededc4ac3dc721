// What the load client and the load server share: the model call that they make, and small helpers.
//
// A call is a POST /v1/messages of a REQUEST_BODY-byte JSON body, answered with a chunked SSE stream of ANSWER_EVENTS events, each
// written with one SSL_write. The call's number stands in the request (metadata.user_id) and in the answer (message.id), so that
// an observer's records can be matched with the calls that were made.
#ifndef LOAD_H
#define LOAD_H

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define REQUEST_BODY (80 * 1024)
#define ANSWER_EVENTS 200
#define ANSWER_DELTAS (ANSWER_EVENTS - 5)
#define CALL_DIGITS 10
#define BUFFER 16384

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    ERR_print_errors_fp(stderr);
    exit(1);
}

// The decimal number in an argument, within bounds.
static inline long number(const char *text, const char *what, long least, long most) {
    char *end;
    long value = strtol(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value < least || value > most)
        die("%s: %s is not a number from %ld to %ld", what, text, least, most);
    return value;
}

// Writes all of it with one SSL_write: partial writes are off.
static inline void send_all(SSL *ssl, const char *data, size_t length) {
    if (SSL_write(ssl, data, (int)length) != (int)length)
        die("SSL_write failed");
}

#endif
