/* Dropout by counting: see draws.h. */
#include "kernels/cpu/ranges.h"
#include "kernels/cpu/simd/draws.h"

typedef struct Dropout {
    void *y;
    const void *x;
    Drop drop;
    Dtype type;
    bool add;
} Dropout;

static void dropout_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Dropout *j = context;
    drop_span(&j->drop, j->y, j->x, first, end, j->type, j->add);
}

static void dropout(Backend *b, void *y, const void *x, int64_t n, const DropoutDraws *d, Dtype t, bool add) {
    Dropout j = {y, x, drop_by(d), t, add};
    cpu_run_ranges(b, n, RANGE_HEAVY, dropout_task, &j);
}

void SIMD_NAME(install_dropout)(Backend *b) { b->dropout = dropout; }
