/* Every claim about operators, held for every operator of the list, each case of its example, f32 and bf16, and every
 * instruction set that this machine has. Nothing here knows an operator: a new one is tested by being in the list. */
#include "kernels/cpu/cpu.h"
#include "tests/kernels/operator_run.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { SETS = 4, COUNTS = 3, SEEDS = 3, SAMPLES = 12 };
static const char *const ISA[SETS] = {"plain", "avx2", "avx512", "avx512-bf16"};
static const int THREADS[COUNTS] = {1, 2, 4};

typedef struct Fixture {
    Backend *backend[SETS][COUNTS]; // NULL where the machine lacks the set
    Tape *tape[SETS][COUNTS];
    Arena *memory;
} Fixture;

typedef struct Subject { // what a test gets
    const Operator *op;
    Fixture *fixture;
    char name[96];
} Subject;

typedef void Claim(Fixture *, Choice);

// A claim holds for all cases of an operator.
static void hold(void **state, Claim *claim) {
    Subject *s = *state;
    assert_non_null(reference_of(s->op));
    int variants = run_variants(s->fixture->tape[0][0], s->op);
    for (int dtype = F32; dtype <= BF16; dtype++) {
        for (int variant = 0; variant < variants; variant++) {
            for (uint64_t seed = 0; seed < SEEDS; seed++) {
                arena_reset(s->fixture->memory);
                claim(s->fixture, (Choice){s->op, (Dtype)dtype, variant, seed});
            }
        }
    }
}

static void print_case(const Run *r, const char *what) {
    Choice c = r->choice;
    print_error("%s of %s, %s, %s, variant %d, seed %d\n", what, c.op->name, tape_backend(r->tape)->isa,
                c.dtype == F32 ? "f32" : "bf16", c.variant, (int)c.seed);
}

// Relative to a number and to the typical one. f32: sums of some hundred terms. bf16: two roundings of 2^-8, one of a
// probability or so within and one of the result, where terms are a few times the typical result and cancel.
static double allowed(Dtype t, double want, double typical) {
    return t == F32 ? 1e-5 * (fabs(want) + typical) : 0x1p-7 * (fabs(want) + 2 * typical);
}

static double rms(Values v) {
    double square = 0;
    for (int64_t i = 0; i < v.count; i++) square += v.value[i] * v.value[i] / (double)v.count;
    return sqrt(square);
}

static void expect_close(const Run *r, const char *what, int64_t element, double got, double want, double typical) {
    if (isfinite(typical) && fabs(got - want) <= allowed(r->choice.dtype, want, typical)) return;
    print_case(r, what);
    fail_msg("element %lld is %.9g, not %.9g; typical %.3g", (long long)element, got, want, typical);
}

static void expect_all_close(const Run *r, const char *what, Values got, Values want) {
    assert_int_equal(got.count, want.count);
    double typical = rms(want);
    for (int64_t i = 0; i < got.count; i++) expect_close(r, what, i, got.value[i], want.value[i], typical);
}

static void expect_same_bits(const Run *r, const char *what, Values got, Values want) {
    assert_int_equal(got.count, want.count);
    for (int64_t i = 0; i < got.count; i++) {
        if (!memcmp(&got.value[i], &want.value[i], sizeof(double))) continue;
        print_case(r, what);
        fail_msg("element %lld of %lld is %.9g, not %.9g", (long long)i, (long long)got.count, got.value[i],
                 want.value[i]);
    }
}

// ---- the claims ----

static void output_matches(Fixture *f, Choice c) {
    for (int set = 0; set < SETS; set++) {
        if (!f->backend[set][1]) continue;
        Run r = run_forward(f->memory, f->tape[set][1], c);
        expect_all_close(&r, "the output", r.out, run_reference(&r));
    }
}
static void output_matches_the_reference(void **state) { hold(state, output_matches); }

// Some elements of an input's gradient, and its derivative along a random direction, which all elements take part in.
static void check_gradient(Run runs[SETS], int input) {
    const Run *r = &runs[0];
    int64_t count = r->in[input].count;
    Rng rng = rng_for(r->choice.seed, PURPOSE_TEST, 2);
    double *direction = arena_array(r->memory, double, count + 1);
    for (int64_t i = 0; i < count; i++) direction[i] = rng_below(&rng, 2) ? 1 : -1;
    double along = run_difference(r, input, 0, direction);
    int64_t element[SAMPLES];
    double want[SAMPLES];
    for (int k = 0; k < SAMPLES; k++) {
        element[k] = (int64_t)rng_below(&rng, (uint64_t)count);
        want[k] = run_difference(r, input, element[k], NULL);
    }
    for (int set = 0; set < SETS; set++) {
        if (!runs[set].call) continue;
        Values got = runs[set].gradient[input];
        double typical = rms(got), sum = 0;
        for (int k = 0; k < SAMPLES; k++)
            expect_close(&runs[set], "a gradient", element[k], got.value[element[k]], want[k], typical + 1e-6);
        for (int64_t i = 0; i < count; i++) sum += direction[i] * got.value[i];
        expect_close(&runs[set], "a derivative along a direction", -1, sum, along,
                     (typical + 1e-6) * sqrt((double)count) * 2);
    }
}

static void gradients_match(Fixture *f, Choice c) {
    Run runs[SETS] = {0};
    for (int set = 0; set < SETS; set++) {
        if (!f->backend[set][1]) continue;
        runs[set] = run_forward(f->memory, f->tape[set][1], c);
        run_backward(&runs[set], false);
    }
    for (int i = 0; i < MAX_INPUTS; i++)
        if (runs[0].gradient[i].value) check_gradient(runs, i);
}
static void gradients_match_differences(void **state) { hold(state, gradients_match); }

static void halves_equal(Fixture *f, Choice c) {
    for (int set = 0; set < SETS; set++) {
        if (!f->backend[set][1]) continue;
        Run whole = run_forward(f->memory, f->tape[set][1], c);
        run_backward(&whole, false);
        Run halves = run_forward(f->memory, f->tape[set][1], c);
        run_backward(&halves, true);
        for (int i = 0; i < MAX_INPUTS; i++)
            expect_same_bits(&halves, "a gradient in halves", halves.gradient[i], whole.gradient[i]);
    }
}
static void halves_equal_the_whole(void **state) { hold(state, halves_equal); }

static void gradients_add(Fixture *f, Choice c) {
    for (int set = 0; set < SETS; set++) {
        if (!f->backend[set][1]) continue;
        Run first = run_forward(f->memory, f->tape[set][1], c);
        run_backward(&first, false);
        Run second = run_forward(f->memory, f->tape[set][1], c);
        Values preset[MAX_INPUTS] = {0};
        run_preset_gradients(&second, preset);
        run_backward(&second, false);
        for (int i = 0; i < MAX_INPUTS; i++) {
            for (int64_t k = 0; k < preset[i].count; k++) preset[i].value[k] += first.gradient[i].value[k];
            if (preset[i].value) expect_all_close(&second, "an added gradient", second.gradient[i], preset[i]);
        }
    }
}
static void gradients_add_to_earlier_ones(void **state) { hold(state, gradients_add); }

static void bits_equal(Fixture *f, Choice c) {
    for (int set = 0; set < SETS; set++) {
        if (!f->backend[set][0]) continue;
        Run one = run_forward(f->memory, f->tape[set][0], c);
        run_backward(&one, false);
        for (int count = 1; count < COUNTS; count++) {
            Run many = run_forward(f->memory, f->tape[set][count], c);
            run_backward(&many, false);
            expect_same_bits(&many, "the output on more threads", many.out, one.out);
            for (int i = 0; i < MAX_INPUTS; i++)
                expect_same_bits(&many, "a gradient on more threads", many.gradient[i], one.gradient[i]);
        }
    }
}
static void bits_do_not_depend_on_threads(void **state) { hold(state, bits_equal); }

static void expect_spread(Run *r, int input, int64_t element, double bad) {
    double good = r->in[input].value[element];
    run_with_element(r, input, element, bad);
    Values want = run_reference(r);
    for (int64_t i = 0; i < want.count; i++) {
        if (isfinite(want.value[i]) || !isfinite(r->out.value[i])) continue;
        print_case(r, isnan(bad) ? "NaN in an input" : "Inf in an input");
        fail_msg("input %d, element %lld: output element %lld is %.9g, not %g", input, (long long)element, (long long)i,
                 r->out.value[i], want.value[i]);
    }
    r->in[input].value[element] = good;
}

// Where the reference's output is not finite, neither is the kernel's.
static void bad_numbers_spread(Fixture *f, Choice c) {
    for (int set = 0; set < SETS; set++) {
        if (!f->backend[set][1]) continue;
        Run r = run_forward(f->memory, f->tape[set][1], c);
        Rng rng = rng_for(c.seed, PURPOSE_TEST, 3);
        for (int i = 0; i < MAX_INPUTS; i++) {
            if (!r.call->in[i] || r.call->in[i]->dtype > BF16 || !r.in[i].count) continue;
            int64_t element[3] = {0, r.in[i].count - 1, (int64_t)rng_below(&rng, (uint64_t)r.in[i].count)};
            for (int k = 0; k < 3; k++) {
                expect_spread(&r, i, element[k], (double)NAN);
                expect_spread(&r, i, element[k], k == 2 ? (double)-INFINITY : (double)INFINITY);
            }
        }
    }
}
static void nan_and_inf_reach_the_output(void **state) { hold(state, bad_numbers_spread); }

// Each element that has a gradient has none that is finite when the output's gradient is NaN.
static void bad_gradients_spread(Fixture *f, Choice c) {
    for (int set = 0; set < SETS; set++) {
        if (!f->backend[set][1]) continue;
        Run good = run_forward(f->memory, f->tape[set][1], c);
        run_backward(&good, false);
        Run bad = run_forward(f->memory, f->tape[set][1], c);
        run_backward_from(&bad, (double)NAN);
        for (int i = 0; i < MAX_INPUTS; i++) {
            for (int64_t k = 0; k < good.gradient[i].count; k++) {
                if (good.gradient[i].value[k] == 0 || !isfinite(bad.gradient[i].value[k])) continue;
                print_case(&bad, "NaN in the output's gradient");
                fail_msg("element %lld of input %d's gradient is %.9g", (long long)k, i, bad.gradient[i].value[k]);
            }
        }
    }
}
static void nan_reaches_the_gradients(void **state) { hold(state, bad_gradients_spread); }

static int64_t allocations(const Fixture *f, int set) {
    return tape_system_allocations(f->tape[set][0]) + ((CpuState *)f->backend[set][0]->state)->allocations;
}

// On one thread: which worker meets its first task in which step is not fixed.
static void nothing_allocated(Fixture *f, Choice c) {
    for (int set = 0; set < SETS; set++) {
        if (!f->backend[set][0]) continue;
        int64_t before = 0;
        for (int step = 0; step < 2; step++) {
            before = allocations(f, set);
            Run r = run_forward(f->memory, f->tape[set][0], c);
            run_backward(&r, false);
        }
        assert_int_equal(allocations(f, set), before);
    }
}
static void second_identical_step_allocates_nothing(void **state) { hold(state, nothing_allocated); }

static void spoil(const Fixture *f, int set, const Tensor *x) {
    Backend *b = f->backend[set][1];
    size_t bytes = tensor_bytes(x);
    void *bad = arena_allocate(f->memory, bytes + 1);
    memset(bad, 0xff, bytes); // NaN, and no index
    if (!x->borrowed) b->upload(b, x->data, bad, bytes);
}

static void spoil_unread(const Fixture *f, int set, const Run *r) {
    unsigned reads = r->call->op->reads(r->call);
    if (!(reads & READS_OUTPUT)) spoil(f, set, r->call->out);
    if (r->call->second) spoil(f, set, r->call->second);
    for (int i = 0; i < MAX_INPUTS; i++)
        if (r->call->in[i] && !WANTS(reads, i)) spoil(f, set, r->call->in[i]);
}

// What an operator says that its backward pass does not read may be anything by then, and by each half what that does
// not read.
static void unread_is_unread(Fixture *f, Choice c) {
    for (int set = 0; set < SETS; set++) {
        if (!f->backend[set][1]) continue;
        Run good = run_forward(f->memory, f->tape[set][1], c);
        run_backward(&good, false);
        for (int in_halves = 0; in_halves < 2; in_halves++) {
            Run spoilt = run_forward(f->memory, f->tape[set][1], c);
            spoil_unread(f, set, &spoilt);
            run_backward_half(&spoilt, in_halves ? INPUT_GRADIENTS : ALL_GRADIENTS);
            spoil_unread(f, set, &spoilt);
            if (in_halves) run_backward_half(&spoilt, WEIGHT_GRADIENTS);
            for (int i = 0; i < MAX_INPUTS; i++)
                expect_same_bits(&spoilt, "a gradient", spoilt.gradient[i], good.gradient[i]);
        }
    }
}
static void backward_reads_what_it_says(void **state) { hold(state, unread_is_unread); }

static void has_all_that_the_list_needs(void **state) {
    const Operator *op = ((Subject *)*state)->op;
    assert_non_null(op->example);
    assert_non_null(reference_of(op));
    assert_non_null(op->cost);
    assert_non_null(op->reads);
    assert_non_null(op->formula);
}

// ---- the list ----

typedef struct NamedClaim {
    const char *name;
    void (*run)(void **);
} NamedClaim;

static const NamedClaim CLAIMS[] = {
    {"has_all_that_the_list_needs", has_all_that_the_list_needs},
    {"output_matches_the_reference", output_matches_the_reference},
    {"gradients_match_differences", gradients_match_differences},
    {"halves_equal_the_whole", halves_equal_the_whole},
    {"gradients_add_to_earlier_ones", gradients_add_to_earlier_ones},
    {"bits_do_not_depend_on_threads", bits_do_not_depend_on_threads},
    {"nan_and_inf_reach_the_output", nan_and_inf_reach_the_output},
    {"nan_reaches_the_gradients", nan_reaches_the_gradients},
    {"backward_reads_what_it_says", backward_reads_what_it_says},
    {"second_identical_step_allocates_nothing", second_identical_step_allocates_nothing},
};
enum { CLAIM_COUNT = sizeof CLAIMS / sizeof *CLAIMS };

static Fixture fixture_new(void) {
    Fixture f = {.memory = arena_new(1 << 20)};
    for (int set = 0; set < SETS; set++) {
        for (int count = 0; count < COUNTS && cpu_has_isa(ISA[set]); count++) {
            f.backend[set][count] = cpu_backend_new(THREADS[count], ISA[set], NULL);
            f.tape[set][count] = tape_new(f.backend[set][count], true);
        }
    }
    return f;
}

static void fixture_free(Fixture *f) {
    for (int set = 0; set < SETS; set++) {
        for (int count = 0; count < COUNTS && f->backend[set][count]; count++) {
            tape_free(f->tape[set][count]);
            backend_free(f->backend[set][count]);
        }
    }
    arena_free(f->memory);
}

// With an argument, only operators of that name.
int main(int argc, char **argv) {
    Fixture fixture = fixture_new();
    size_t operators = 0, count = 0;
    while (operator_list[operators]) operators++;
    Subject *subjects = calloc(operators * CLAIM_COUNT, sizeof *subjects);
    struct CMUnitTest *tests = calloc(operators * CLAIM_COUNT, sizeof *tests);
    for (size_t i = 0; i < operators; i++) {
        if (argc > 1 && strcmp(argv[1], operator_list[i]->name)) continue;
        for (size_t k = 0; k < CLAIM_COUNT; k++, count++) {
            Subject *s = &subjects[count];
            *s = (Subject){.op = operator_list[i], .fixture = &fixture};
            snprintf(s->name, sizeof s->name, "%s_%s", s->op->name, CLAIMS[k].name);
            tests[count] = (struct CMUnitTest){.name = s->name, .test_func = CLAIMS[k].run, .initial_state = s};
        }
    }
    int failed = count ? _cmocka_run_group_tests("operators", tests, count, NULL, NULL) : 1;
    fixture_free(&fixture);
    free(subjects);
    free(tests);
    return failed != 0;
}
