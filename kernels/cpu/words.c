/* The next word of a row of text (Backend.choose_words). Weights are integers, so that sums of them are the same in any
 * order, and each is formed by single operations in f32, so that it is the same on every device: the GPU's choice is
 * this one's (kernels/cuda/choose.cu). */
#include "base/philox.h"
#include "kernels/cpu/ranges.h"
#include <math.h>
#include <stdlib.h>

typedef struct Candidate {
    float score;
    int32_t word;
    uint64_t weight;
} Candidate;

typedef struct Rows {
    const Backend *backend;
    WordRows speech;
    const void *x; // (rows, width)
    int64_t rows, width;
    Dtype t;
} Rows;

static float score_of(const Rows *j, int64_t row, int64_t word) {
    int64_t at = row * j->width + word;
    return j->t == F32 ? ((const float *)j->x)[at] : bf16_to_f32(((const uint16_t *)j->x)[at]);
}

// The first of the largest, or -1.
static int32_t likeliest(const Rows *j, int64_t row) {
    float most = -INFINITY;
    int64_t best = 0;
    for (int64_t i = 0; i < j->width; i++) {
        float score = score_of(j, row, i);
        if (isnan(score)) return -1;
        if (score > most) most = score, best = i;
    }
    return isfinite(most) ? (int32_t)best : -1;
}

// 2^((score - most) factor) as an integer; 2^40 for the largest, 0 below 2^-40 of it. Statements of one operation each:
// no compiler makes a multiply-add of two.
static uint64_t weight_of(float score, float most, float factor) {
    static const float power[] = {0.00015403530f, 0.0013333558f, 0.0096181291f, 0.055504109f,
                                  0.24022651f,    0.69314718f,   1.0f}; // ln 2^k / k!, k = 6 .. 0
    float behind = score - most;
    float y = behind * factor;
    if (!(y > -40)) return 0;
    float shifted = y - 0.5f;
    int whole = (int)shifted;
    float f = y - (float)whole, p = power[0]; // f is in [-1/2, 1/2]
    for (int k = 1; k < 7; k++) {
        float product = p * f;
        p = product + power[k];
    }
    float scaled = p * 8388608.0f; // 2^23
    return (uint64_t)(uint32_t)scaled << 17 >> -whole;
}

static int by_falling_score(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->word < y->word ? -1 : x->word > y->word;
}

// What the sorted candidates that stay weigh together.
static uint64_t weight_kept(const WordDraw *draw, const Candidate *c, int64_t count) {
    uint64_t all = 0, kept = 0;
    if (draw->top_k > 0 && draw->top_k < count) count = draw->top_k;
    for (int64_t i = 0; i < count; i++) all += c[i].weight;
    if (draw->top_p >= 1) return all;
    uint64_t wanted = (uint64_t)ceil(draw->top_p * (double)all);
    for (int64_t i = 0; i < count && kept < wanted; i++) kept += c[i].weight;
    return kept;
}

static int32_t by_lot(const Rows *j, int64_t row, int32_t best, Candidate *c) {
    const WordDraw *draw = &j->speech.draws[row];
    float most = score_of(j, row, best);
    for (int64_t i = 0; i < j->width; i++) {
        float score = score_of(j, row, i);
        c[i] = (Candidate){score, (int32_t)i, weight_of(score, most, draw->factor)};
    }
    qsort(c, (size_t)j->width, sizeof *c, by_falling_score);
    uint64_t kept = weight_kept(draw, c, j->width), sum = 0;
    Rng rng = rng_for(draw->seed, PURPOSE_SAMPLING, draw->number);
    rng.index = (uint32_t)j->speech.step[row] * 2; // a draw takes two words
    uint64_t lot = (uint64_t)(rng_uniform(&rng) * (double)kept);
    if (lot >= kept) lot = kept - 1;
    int64_t i = 0;
    while ((sum += c[i].weight) <= lot) i++;
    return c[i].word;
}

static void move_on(const Rows *j, int64_t row, int32_t word) {
    const WordRows *s = &j->speech;
    int32_t *range = &s->range[2 * row], step = s->step[row]++;
    bool ended = range[1] == 0;
    if (ended) word = s->end;
    s->said[step % s->kept * j->rows + row] = word;
    s->next[row] = word;
    if (ended || word == s->end || word < 0 || step + 1 >= s->draws[row].most) {
        range[0] = range[1] = 0; // it stays where it is, in sight of nothing
        return;
    }
    s->positions[row]++;
    s->slots[row]++;
    range[1]++;
}

static void choose_task(void *context, int64_t first, int64_t end, int worker) {
    const Rows *j = context;
    for (int64_t row = first; row < end; row++) {
        int32_t word = -1;
        bool ended = j->speech.range[2 * row + 1] == 0;
        if (!ended) word = likeliest(j, row);
        if (word >= 0 && j->speech.draws[row].factor != 0)
            word = by_lot(j, row, word, cpu_worker_scratch(j->backend, worker, sizeof(Candidate) * (size_t)j->width));
        move_on(j, row, word);
    }
}

static void choose_words(Backend *b, const WordRows *speech, const void *x, int64_t rows, int64_t width, Dtype t) {
    Rows j = {b, *speech, x, rows, width, t};
    cpu_run_ranges(b, rows, range_rows(width, RANGE_HEAVY), choose_task, &j);
}

void cpu_install_words(Backend *b) { b->choose_words = choose_words; }
