/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * All kernel programs in one object: what user space does not ask for, or the kernel does not have, is not loaded.
 */
#include "common.bpf.h"

#include "io.bpf.c"
#include "process.bpf.c"
#include "secrets.bpf.c"
#include "stdio.bpf.c"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
