/* SPDX-License-Identifier: MIT
 *
 * Finding text that may hold a secret: fast, and never a false no.
 *
 * as_redact_scan tells for a block of UTF-8 which kinds of secrets it may contain, as a set of bits. A bit that is not set is a
 * promise: the regular expression of that kind (agentsight/analyzers/secrets.py) does not match. A bit that is set may be wrong.
 * Call as_redact_init once before anything else; after that scanning is free of state and safe from any thread.
 */
#ifndef AS_REDACT_H
#define AS_REDACT_H

#include <stddef.h>
#include <stdint.h>

enum { /* in the order of the rules in secrets.py */
       AS_R_ANTHROPIC,
       AS_R_OPENAI,
       AS_R_STRIPE,
       AS_R_GITHUB,
       AS_R_AWS,
       AS_R_GOOGLE,
       AS_R_SLACK,
       AS_R_GITLAB,
       AS_R_HUGGINGFACE,
       AS_R_NPM,
       AS_R_JWT,
       AS_R_BEARER,
       AS_R_PEM,
       AS_R_URL,
       AS_R_NAMED, /* a name like api_key or Authorization, and a value behind it */
       AS_R_KINDS
};

void as_redact_init(void);
uint32_t as_redact_scan(const uint8_t *p, size_t n);
/* The places of kind AS_R_NAMED: offsets into the names. Puts up to max (> 0) of them into at, in no strict order and perhaps
 * twice; gives their number, which may be larger. */
size_t as_redact_names(const uint8_t *p, size_t n, size_t *at, size_t max);

#endif
