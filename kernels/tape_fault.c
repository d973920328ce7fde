/* What is said of a device that did something wrong: the operator it was noticed in, its shapes, its place in the
 * model. Nothing a process has on a device is usable behind a fault, so it ends. */
#include "base/buffer.h"
#include "kernels/tape_parts.h"
#include <stdio.h>
#include <stdlib.h>

static void describe(Buffer *text, const Tensor *x) {
    static const char *const types[] = {[F32] = "f32", [BF16] = "bf16", [I32] = "i32", [U8] = "u8"};
    buffer_printf(text, "%s (", types[x->dtype]);
    for (int i = 0; i < x->rank; i++) buffer_printf(text, "%s%lld", i ? ", " : "", (long long)x->shape[i]);
    buffer_text(text, ")");
}

void tape_look_for_faults(const Tape *t, const Node *n, const char *pass) {
    const char *fault = t->backend->fault ? t->backend->fault(t->backend) : NULL;
    if (!fault) return;
    Buffer text = {0};
    for (int i = 0, seen = 0; i < MAX_INPUTS; i++) {
        if (!n->in[i]) continue;
        if (seen++) buffer_text(&text, ", ");
        describe(&text, n->in[i]);
    }
    buffer_text(&text, " -> ");
    describe(&text, n->out);
    fprintf(stderr, "the device failed in %s, %s, %s, %s: %s\n", n->op->name, pass, text.data, tape_place(t, n), fault);
    buffer_free(&text);
    abort();
}
