/* See initial.h. A block of the counter-based generator gives four numbers; Box and Muller (1958) turn uniform ones
 * into normal ones two by two, so a range draws its first and last blocks whole and keeps what lies inside. */
#include "kernels/nn/initial.h"
#include "base/error.h"
#include "base/philox.h"
#include <math.h>
#include <string.h>

// Four numbers for elements 4 * block ... of the stream `element`: uniform in (0, 1), 32 bits.
static void draw_uniform(uint64_t seed, uint64_t element, uint64_t block, double out[4]) {
    PhiloxBlock words = philox_block(seed, (uint64_t)PURPOSE_INIT << 32 | block, element);
    for (int i = 0; i < 4; i++) out[i] = ((double)words.word[i] + 0.5) * 0x1p-32;
}

// Box and Muller: two uniform numbers to two normal ones.
static void to_normal(double u[4]) {
    for (int i = 0; i < 4; i += 2) {
        double radius = sqrt(-2 * log(u[i])), angle = 6.283185307179586476925 * u[i + 1];
        u[i] = radius * cos(angle);
        u[i + 1] = radius * sin(angle);
    }
}

// Elements [first, first + count) of the whole tensor.
static void draw(const Init *init, uint64_t seed, uint64_t element, int64_t first, int64_t count, float *out) {
    for (int64_t i = first; i < first + count;) {
        double u[4];
        draw_uniform(seed, element, (uint64_t)i / 4, u);
        if (init->kind == INIT_NORMAL) to_normal(u);
        for (int64_t j = i % 4; j < 4 && i < first + count; j++, i++)
            *out++ = (float)(init->value * (init->kind == INIT_NORMAL ? u[j] : 2 * u[j] - 1));
    }
}

static void fill(float *out, int64_t count, double value) {
    for (int64_t i = 0; i < count; i++) out[i] = (float)value;
}

static void whole_values(const Parameter *p, uint64_t seed, int64_t first, int64_t count, float *out) {
    const char *name = p->is_replica ? p->replica->tensor.name : p->tensor.name;
    switch (p->init.kind) {
    case INIT_NORMAL:
    case INIT_UNIFORM:
        draw(&p->init, seed, hash_u64(name, strlen(name)), first, count, out);
        return;
    case INIT_GIVEN:
        memcpy(out, p->init.given + first, (size_t)count * sizeof *out);
        return;
    case INIT_ZERO:
    case INIT_ONE:
    case INIT_CONSTANT:
        fill(out, count, p->init.kind == INIT_ONE ? 1 : p->init.kind == INIT_CONSTANT ? p->init.value : 0);
        return;
    }
    check_failed("a kind of initial value", __FILE__, __LINE__);
}

void parameter_initial(const Parameter *p, const Parallel *parallel, uint64_t seed, int64_t first, int64_t count,
                       float *out) {
    for (int64_t done = 0; done < count;) {
        int64_t global, run;
        parameter_run(p, parallel, first + done, &global, &run);
        if (run > count - done) run = count - done;
        whole_values(p, seed, global, run, out + done);
        done += run;
    }
}
