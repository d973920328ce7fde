/* What the CUDA backend decides without CUDA: memory in regions, remembered plans, layouts of products, which GPUs it
 * takes. The driver is one made for the test. */
#include "base/philox.h"
#include "kernels/cuda/host/activity.h"
#include "kernels/cuda/host/command_list.h"
#include "kernels/cuda/host/gpu_facts.h"
#include "kernels/cuda/host/nccl_facts.h"
#include "kernels/cuda/host/product_layout.h"
#include "kernels/cuda/host/regions.h"
#include "kernels/cuda/host/shape_cache.h"
#include "kernels/cuda/host/work_space.h"
#include "tests/support/test.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- what a GPU did ----

typedef struct Told {
    DeviceSlice slices[16];
    char names[16][64];
    int count;
} Told;

static void tell(void *context, const DeviceSlice *s) {
    Told *t = context;
    assert_true(t->count < 16);
    snprintf(t->names[t->count], 64, "%s", s->name);
    t->slices[t->count++] = *s;
}

static void kernels_have_short_names(void **state) {
    (void)state;
    static const struct {
        const char *linked, *name;
    } names[] = {
        {"_ZN12_GLOBAL__N_110map_kernelI4GeluLb0ELi8EEEvT_", "map_kernel Gelu"},
        {"_Z13argmax_kernelIfEvPiPKT_l", "argmax_kernel"},
        {"_ZL11norm_kernelIN12_GLOBAL__N_14NormEEvv", "norm_kernel Norm"},
        {"sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x256x64_warpgroupsize2x1x1_kernel",
         "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n"},
        {"_Z99short", "_Z99short"},
        {"_Z", "_Z"},
        {"", ""},
    };
    char name[64];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        activity_name(&(Activity){.kind = ACTIVITY_KERNEL, .name = names[i].linked}, name);
        assert_string_equal(name, names[i].name);
    }
    activity_name(&(Activity){.kind = ACTIVITY_COPY, .way = COPY_TO_DEVICE, .bytes = 4 << 20}, name);
    assert_string_equal(name, "copy to device, 4.0 MiB");
    activity_name(&(Activity){.kind = ACTIVITY_FILL, .bytes = 12}, name);
    assert_string_equal(name, "fill, 12 B");
}

static void the_device_s_work_is_told_in_order_and_by_the_host_s_clock(void **state) {
    (void)state;
    static const uint64_t start = 1700000000000000000u; // nanoseconds: no double holds them
    Activities *a = activities_new();
    Told told = {0};
    char linked[] = "_Z5firstv";
    activities_add(a,
                   &(Activity){.name = "_Z6secondv", .stream = 13, .begin = start + 2000000, .end = start + 9000000});
    activities_add(a, &(Activity){.name = linked, .stream = 7, .begin = start + 1000000, .end = start + 3000000});
    memset(linked, 'x', sizeof linked - 1); // names are copied
    activities_add(
        a,
        &(Activity){.kind = ACTIVITY_COPY, .bytes = 5, .stream = 7, .begin = start + 5000000, .end = start + 6000000});
    activities_add(a, &(Activity){.name = "_Z5neverv", .stream = 7}); // had not ended
    // The device's clock runs 0.1 % fast, and began at another time.
    ClockPair first = {start, 500}, last = {start + 10010000, 500.010};
    activities_tell(a, first, last, &told, tell);
    assert_int_equal(told.count, 3);
    static const char *const names[] = {"first", "second", "copy, 5 B"};
    static const int streams[] = {0, 1, 0};
    static const double begins[] = {1, 2, 5}, ends[] = {3, 9, 6};
    for (int i = 0; i < 3; i++) {
        assert_string_equal(told.names[i], names[i]);
        assert_int_equal(told.slices[i].stream, streams[i]);
        assert_true(fabs(told.slices[i].begin - 500 - begins[i] * 1e-3 / 1.001) < 1e-9);
        assert_true(fabs(told.slices[i].end - 500 - ends[i] * 1e-3 / 1.001) < 1e-9);
    }
    activities_tell(a, first, last, &told, tell); // once
    assert_int_equal(told.count, 3);
    assert_int_equal(activities_left_out(a), 0);
    activities_free(a);
    activities_free(NULL);
}

// ---- regions ----

enum { PAGE = 4096 };

typedef struct Device { // a driver with little memory
    size_t left, address_space, backed, reserved;
    uintptr_t next;
    int pieces;
} Device;

static bool reserve(void *context, size_t bytes, uintptr_t *address) {
    Device *d = context;
    assert_int_equal(bytes % PAGE, 0);
    if (d->reserved + bytes > d->address_space) return false;
    d->reserved += bytes;
    *address = d->next;
    d->next += bytes;
    return true;
}
static void unreserve(void *context, uintptr_t address, size_t bytes) {
    (void)address;
    ((Device *)context)->reserved -= bytes;
}
static bool back(void *context, uintptr_t address, size_t bytes, uint64_t *piece) {
    Device *d = context;
    assert_int_equal(address % PAGE + bytes % PAGE, 0);
    if (bytes > d->left) return false;
    d->left -= bytes, d->backed += bytes, d->pieces++;
    *piece = address ^ bytes;
    return true;
}
static void unback(void *context, uintptr_t address, size_t bytes, uint64_t piece) {
    Device *d = context;
    assert_int_equal(piece, address ^ bytes);
    d->left += bytes, d->backed -= bytes, d->pieces--;
}

static Regions *small_device(Device *d, size_t memory, size_t address_space) {
    *d = (Device){.left = memory, .address_space = address_space, .next = 1 << 30};
    return regions_new(&(RegionDriver){d, PAGE, reserve, unreserve, back, unback}, memory);
}

static void a_region_grows_where_it_stands(void **state) {
    (void)state;
    Device d;
    Regions *r = small_device(&d, 64 << 20, (size_t)1 << 32);
    void *first = regions_allocate(r, 2 << 20), *other = regions_allocate(r, 2 << 20);
    assert_true(first && other && first != other);
    assert_int_equal(regions_growing(r), 0);
    assert_true(regions_extend(r, first, 2 << 20, 1));
    assert_int_equal(regions_held(r), (4 << 20) + PAGE);
    assert_true(regions_extend(r, first, (2 << 20) + 1, PAGE - 1)); // there already
    assert_int_equal(d.backed, (4 << 20) + PAGE);
    assert_int_equal(regions_growing(r), (2 << 20) + PAGE);
    regions_release(r, other);
    regions_release(r, NULL);
    assert_int_equal(d.backed, (2 << 20) + PAGE);
    regions_free(r);
    assert_int_equal(d.backed + d.reserved + (size_t)d.pieces, 0);
}

static void a_region_stops_where_memory_or_addresses_end(void **state) {
    (void)state;
    Device d;
    Regions *r = small_device(&d, 8 << 20, (size_t)1 << 32);
    void *block = regions_allocate(r, 4 << 20);
    assert_false(regions_extend(r, block, 4 << 20, (4 << 20) + 1)); // more than the device has
    assert_true(regions_extend(r, block, 4 << 20, 4 << 20));
    assert_null(regions_allocate(r, 1));
    assert_int_equal(d.reserved, 8 << 20); // what was refused keeps no addresses
    regions_free(r);
    r = small_device(&d, 8 << 20, 5 << 20); // not even addresses for all of it
    block = regions_allocate(r, 4 << 20);
    assert_non_null(block);
    assert_false(regions_extend(r, block, 4 << 20, PAGE));
    regions_free(r);
}

static void running_out_says_what_would_fit(void **state) {
    (void)state;
    char text[512];
    MemoryState m = {
        .wanted = (size_t)2 << 30, .free = (size_t)1 << 30, .total = (size_t)80 << 30, .held = (size_t)70 << 30};
    regions_explain(text, sizeof text, m);
    assert_non_null(strstr(text, "another 2.000 GiB were wanted, 1.000 of 80.0 GiB are free"));
    assert_non_null(strstr(text, "holds 70.000 GiB"));
    assert_non_null(strstr(text, "1.000 GiB less"));
    m.growing = (size_t)8 << 30;
    regions_explain(text, sizeof text, m);
    assert_non_null(strstr(text, "at most 90 % of this one's samples would fit"));
    assert_int_equal(strlen(regions_explain(text, 32, m)), 31); // cut, not overrun
}

// ---- plans ----

static int drops;
static void drop(void *value) { drops += *(int *)value; }

static void plans_are_remembered_by_their_whole_key(void **state) {
    (void)state;
    enum { KEYS = 5000 };
    ShapeCache *cache = shape_cache_new(2 * sizeof(int64_t), sizeof(int));
    bool found;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < KEYS; i++) {
            int64_t key[2] = {i % 71, i / 71};
            int *value = shape_cache_get(cache, key, &found);
            assert_int_equal(found, pass);
            if (pass)
                assert_int_equal(*value, (int)i + 1);
            else
                assert_int_equal(*value, 0), *value = (int)i + 1;
        }
    }
    assert_int_equal(shape_cache_count(cache), KEYS);
    drops = 0;
    shape_cache_free(cache, drop);
    assert_int_equal(drops, KEYS * (KEYS + 1) / 2);
    shape_cache_free(NULL, drop);
}

// ---- products ----

// What a column-major library would read for element (row, column) of a side as it enters the product.
static int64_t place(const ProductSide *s, int64_t row, int64_t column) {
    if (s->transposed) return row * s->leading + column;
    return row + column * s->leading;
}

static void expect_places(const Matmul *p) {
    ProductLayout l;
    assert_true(product_layout(p, &l));
    const ProductSide *sides[] = {&l.left, &l.right, &l.out};
    for (int i = 0; i < 3; i++) assert_true(sides[i]->leading >= sides[i]->rows);
    for (int64_t k = 0; k < p->k; k++) {
        for (int64_t n = 0; n < p->n; n++) assert_int_equal(place(&l.left, n, k), k * p->b_row + n * p->b_column);
        for (int64_t m = 0; m < p->m; m++) assert_int_equal(place(&l.right, k, m), m * p->a_row + k * p->a_column);
    }
    for (int64_t m = 0; m < p->m; m++)
        for (int64_t n = 0; n < p->n; n++) assert_int_equal(place(&l.out, n, m), m * p->c_row + n);
}

static void row_major_products_become_column_major_ones(void **state) {
    (void)state;
    Rng rng = rng_for(1, PURPOSE_TEST, 9);
    for (int i = 0; i < 400; i++) {
        int64_t m = 1 + (int64_t)rng_below(&rng, 5), n = 1 + (int64_t)rng_below(&rng, 5);
        int64_t k = 1 + (int64_t)rng_below(&rng, 5), wider = (int64_t)rng_below(&rng, 3);
        Matmul p = {.m = m, .n = n, .k = k, .batch = 1, .c_row = n + wider};
        p.a_row = i & 1 ? k + wider : 1, p.a_column = i & 1 ? 1 : m + wider;
        p.b_row = i & 2 ? n + wider : 1, p.b_column = i & 2 ? 1 : k + wider;
        expect_places(&p);
    }
}

static void products_without_a_unit_stride_are_refused(void **state) {
    (void)state;
    ProductLayout l;
    Matmul p = {.m = 3, .n = 3, .k = 3, .batch = 1, .a_row = 6, .a_column = 2, .b_row = 3, .b_column = 1, .c_row = 3};
    assert_false(product_layout(&p, &l));
    p.a_column = 1;
    assert_true(product_layout(&p, &l));
    p.c_row = 2; // rows would overlap
    assert_false(product_layout(&p, &l));
}

static void a_plan_is_found_again_by_shape_type_and_alignment(void **state) {
    (void)state;
    _Alignas(256) static char memory[1024];
    ProductLayout l;
    Matmul p = {.m = 4, .n = 8, .k = 16, .batch = 1, .a = memory, .a_row = 16, .a_column = 1, .b = memory, .b_row = 8};
    p.b_column = 1, p.c = memory, p.c_row = 8;
    assert_true(product_layout(&p, &l));
    ProductKey key = product_key(&p, &l), other;
    Matmul moved = p;
    moved.a = memory + 256, moved.b = memory + 512;
    other = product_key(&moved, &l);
    assert_memory_equal(&key, &other, sizeof key); // addresses do not count, their alignment does
    moved.a = memory + 2;
    other = product_key(&moved, &l);
    assert_memory_not_equal(&key, &other, sizeof key);
    Matmul changed[] = {p, p, p, p, p};
    changed[0].n = 7, changed[1].add = true, changed[2].out = BF16, changed[3].in = BF16,
    changed[4].bias = (float *)memory;
    for (int i = 0; i < 5; i++) {
        assert_true(product_layout(&changed[i], &l));
        other = product_key(&changed[i], &l);
        assert_memory_not_equal(&key, &other, sizeof key);
    }
    assert_int_equal(pointer_alignment(memory), 256);
    assert_int_equal(pointer_alignment(memory + 6), 2);
}

// ---- GPUs ----

static void gpus_that_will_not_do_are_refused_with_what_was_found(void **state) {
    (void)state;
    Error error = {0};
    GpuFacts f = {.runtime = 13000, .name = "Tesla T4"};
    assert_false(gpu_present(&f, &error));
    assert_non_null(strstr(error.message, "CUDA 13.0 is here, but no driver"));
    f.driver = 12080;
    assert_false(gpu_present(&f, &error));
    assert_non_null(strstr(error.message, "the driver knows CUDA up to 12.8"));
    f.driver = 13010;
    assert_false(gpu_present(&f, &error));
    assert_non_null(strstr(error.message, "no GPU is visible"));
    f.count = 1, f.device = 1;
    assert_false(gpu_present(&f, &error));
    assert_non_null(strstr(error.message, "no GPU 1: 1 is visible"));
    f.device = 0, f.major = 7, f.minor = 5;
    assert_true(gpu_present(&f, &error));
    assert_false(gpu_new_enough(&f, &error));
    assert_non_null(strstr(error.message, "GPU 0 (Tesla T4) has compute capability 7.5; at least 8.0"));
    f.major = 8, f.minor = 0;
    assert_true(gpu_new_enough(&f, &error));
    f.major = 12;
    assert_true(gpu_new_enough(&f, &error));
}

// ---- NCCL ----

__attribute__((used)) static const char nccl_text[] = "NCCL version 2.28.9+cuda12.4";

static void nccl_says_which_cuda_it_was_built_for(void **state) {
    (void)state;
    assert_int_equal(nccl_built_for("/proc/self/exe"), 12040); // where that text stands
    assert_int_equal(nccl_built_for("/proc/self/status"), 0);
    assert_int_equal(nccl_built_for("/dev/null"), 0);
    assert_int_equal(nccl_built_for("there_is_no_such_file"), 0);
}

static void an_nccl_of_another_cuda_is_refused_with_both_versions(void **state) {
    (void)state;
    Error error = {0};
    NcclFacts f = {.version = 22809, .built_for = 13000, .runtime = 13000, .driver = 13020};
    assert_true(nccl_fits(&f, &error));
    f.built_for = 13010;
    assert_true(nccl_fits(&f, &error));
    f.built_for = 0; // it does not say
    assert_true(nccl_fits(&f, &error));
    f.built_for = 12040;
    assert_false(nccl_fits(&f, &error));
    assert_non_null(strstr(error.message, "NCCL 2.28.9 was built for CUDA 12.4, this program for CUDA 13.0 (the driver "
                                          "knows up to 13.2)"));
    f.version = 21005;
    assert_false(nccl_fits(&f, &error));
    assert_non_null(strstr(error.message, "NCCL 2.10.5 is too old"));
}

// ---- lists of commands ----

static void start_nothing(const void *arguments, CudaStream stream) { (void)arguments, (void)stream; }

// One command whose argument is the number, as many bytes of it as asked for.
static CommandList list_of(uint64_t number, size_t bytes) {
    CommandList l = {0};
    command_list_add(&l, (Command){.start = start_nothing, .bytes = bytes, .kind = COMMAND_CALL}, &number);
    return l;
}

static void commands_come_back_in_order_with_their_arguments(void **state) {
    (void)state;
    CommandList l = {0};
    char text[100000];
    memset(text, 'x', sizeof text);
    command_list_add(&l, (Command){.start = start_nothing, .bytes = 3, .kind = COMMAND_CALL, .lane = 2}, "abc");
    command_list_add(&l, (Command){.mark = 7, .kind = COMMAND_MARK}, NULL);
    command_list_add(&l, (Command){.start = start_nothing, .bytes = sizeof text, .kind = COMMAND_CALL}, text);
    size_t at = 0;
    const Command *c = command_list_next(&l, &at);
    assert_true(c && c->bytes == 3 && c->lane == 2 && !memcmp(command_arguments(c), "abc", 3));
    c = command_list_next(&l, &at);
    assert_true(c && c->kind == COMMAND_MARK && c->mark == 7);
    c = command_list_next(&l, &at);
    assert_true(c && (uintptr_t)command_arguments(c) % 16 == 0 && !memcmp(command_arguments(c), text, sizeof text));
    assert_null(command_list_next(&l, &at));
    assert_int_equal(l.count, 3);
    command_list_free(&l);
}

static int dropped;
static void count_drop(void *graph) { dropped += *(int *)graph; }

static void lists_of_equal_bytes_are_one_and_the_oldest_is_forgotten(void **state) {
    (void)state;
    enum { MOST = 4 };
    int one = 1;
    bool found;
    KnownLists *known = known_lists_new(MOST, count_drop);
    dropped = 0;
    for (int round = 0; round < 2; round++) {
        for (uint64_t i = 0; i < MOST; i++) {
            CommandList l = list_of(i, 8);
            KnownList *k = known_lists_find(known, &l, &found);
            assert_true(found == (round == 1) && (k->graph != NULL) == found);
            k->graph = &one;
            command_list_free(&l);
        }
    }
    assert_int_equal(known_lists_count(known), MOST);
    CommandList longer = list_of(0, 4), first = list_of(0, 8), second = list_of(1, 8);
    known_lists_find(known, &first, &found);
    known_lists_find(known, &longer, &found); // in the place of the second
    assert_true(!found && dropped == 1);
    known_lists_find(known, &first, &found);
    assert_true(found);
    known_lists_drop_graphs(known);
    assert_int_equal(dropped, MOST);
    assert_true(!known_lists_find(known, &second, &found)->graph && !found);
    known_lists_free(known);
    assert_int_equal(dropped, MOST);
    command_list_free(&longer), command_list_free(&first), command_list_free(&second);
}

// GPT-2's step, pictures of ViT-B/16, a length of which not even one row fits.
static void attention_goes_backward_in_slices_of_what_fits(void **state) {
    (void)state;
    const int64_t cases[][5] = {// batch, positions, heads, a slice, its bytes
                                {32, 1024, 12, 8, 8 * 12 * 1024 * 1024 * 2},
                                {256, 197, 12, 128, 128 * 12 * 256 * 256 * 2},
                                {31, 1024, 12, 8, 8 * 12 * 1024 * 1024 * 2},
                                {3, 16384, 12, 3, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int64_t *c = cases[i];
        assert_int_equal(work_attention_slice(c[0], c[1], c[1], c[2], c[2], 64), c[3]);
        size_t own = work_attention_backward(c[0], c[1], c[1], c[2], c[2], 64, false);
        assert_int_equal(work_attention_backward(c[0], c[1], c[1], c[2], c[2], 64, true), own + (size_t)c[4]);
        assert_true(c[4] <= WORK_SDPA);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commands_come_back_in_order_with_their_arguments),
        cmocka_unit_test(lists_of_equal_bytes_are_one_and_the_oldest_is_forgotten),
        cmocka_unit_test(kernels_have_short_names),
        cmocka_unit_test(attention_goes_backward_in_slices_of_what_fits),
        cmocka_unit_test(the_device_s_work_is_told_in_order_and_by_the_host_s_clock),
        cmocka_unit_test(a_region_grows_where_it_stands),
        cmocka_unit_test(a_region_stops_where_memory_or_addresses_end),
        cmocka_unit_test(running_out_says_what_would_fit),
        cmocka_unit_test(plans_are_remembered_by_their_whole_key),
        cmocka_unit_test(row_major_products_become_column_major_ones),
        cmocka_unit_test(products_without_a_unit_stride_are_refused),
        cmocka_unit_test(a_plan_is_found_again_by_shape_type_and_alignment),
        cmocka_unit_test(gpus_that_will_not_do_are_refused_with_what_was_found),
        cmocka_unit_test(nccl_says_which_cuda_it_was_built_for),
        cmocka_unit_test(an_nccl_of_another_cuda_is_refused_with_both_versions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
