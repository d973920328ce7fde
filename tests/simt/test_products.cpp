/* The CUDA backend's products over a stand-in for cuBLASLt (cublaslt.c): every order, stride and type against
 * the CPU backend, each description by the library's rules; which kernel is taken, and that another process takes the
 * same. */
#include "tests/simt/support.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unistd.h>
extern "C" {
#include "kernels/cuda.h"
#include "kernels/cuda/cuda_list.h"
#include "kernels/cuda/cuda_products.h"
#include "tests/simt/cublaslt.h"
#include "tests/simt/runtime.h"
}

struct Gpu {
    Backend *backend;
    Gpu() {
        Error error = {};
        CudaOptions options = {};
        backend = cuda_backend_new(&options, nullptr, &error);
        assert_non_null(backend);
    }
    ~Gpu() { backend_free(backend); }
    void run(const Matmul *p) { // within a sequence, as steps are
        backend_sequence_begin(backend, "products");
        backend->matmul(backend, p);
        backend_sequence_end(backend);
        backend->wait(backend);
    }
    bool wins(const Matmul *p) { return backend->matmul_wins(backend, p); }
    CudaListCounts counts() const { return cuda_list_counts(cuda_state(backend)); }
};

static void library(int kernels) {
    stand_in = StandIn();
    stand_in.kernels = kernels;
    for (int i = 0; i < 8; i++) stand_in.seconds[i] = 1e-6 * (8 - i);
}

// A folder of its own for what is remembered; gone with it.
struct Cache {
    char folder[64];
    Cache() {
        snprintf(folder, sizeof folder, "/tmp/test_products.XXXXXX");
        assert_non_null(mkdtemp(folder));
        setenv("XDG_CACHE_HOME", folder, 1);
        unsetenv("BIFOCAL_AUTOTUNE");
    }
    ~Cache() {
        std::string remove = std::string("rm -rf '") + folder + "'";
        assert_int_equal(system(remove.c_str()), 0);
    }
    std::string file() const { return std::string(folder) + "/bifocal/products-stand-in-4-139900"; }
};

// ---- products ----

struct Product { // and its memory
    Array a, b, c, bias;
    Matmul p;
};

static Product draw(Rng *rng, int64_t m, int64_t n, int64_t k, int64_t batch, unsigned how) {
    Dtype in = how & 1 ? BF16 : F32, out = how & 2 ? F32 : in;
    bool ta = how & 4, tb = how & 8, add = how & 16, bias = how & 32 && !add;
    int shift = how & 64 ? 1 : 0;
    int64_t gap = how & 128 && !bias ? 8 : 0, c_row = n + gap;
    Product r = {Array(in, batch * m * k, shift), Array(in, batch * k * n, shift), Array(out, batch * m * c_row, shift),
                 Array(F32, n), Matmul()};
    r.a.normal(rng), r.b.normal(rng), r.c.normal(rng), r.bias.normal(rng);
    r.p.m = m, r.p.n = n, r.p.k = k, r.p.batch = batch, r.p.a = r.a, r.p.b = r.b, r.p.c = r.c, r.p.in = in,
    r.p.out = out, r.p.add = add, r.p.bias = bias ? r.bias.f32() : nullptr;
    r.p.a_row = ta ? 1 : k, r.p.a_column = ta ? m : 1, r.p.b_row = tb ? 1 : n, r.p.b_column = tb ? k : 1;
    r.p.c_row = c_row, r.p.a_batch = m * k, r.p.b_batch = k * n, r.p.c_batch = m * c_row;
    return r;
}

static void agree(Gpu *gpu, Product *x, const char *name) {
    Array want(x->c);
    Matmul p = x->p;
    p.c = want;
    cpu()->matmul(cpu(), &p);
    gpu->run(&x->p);
    expect_near(x->c, want, x->p.out == BF16 ? 1.0 / 64 : 1e-5, x->p.out == BF16 ? 0.05 : 1e-4, name);
}

static void products_of_all_orders_types_and_strides_agree(void **) {
    Cache cache;
    library(5);
    Gpu gpu;
    Rng rng = rng_for(1, PURPOSE_TEST, 0);
    for (unsigned how = 0; how < 256; how++) {
        char name[32];
        snprintf(name, sizeof name, "kind %u", how);
        Product x = draw(&rng, 1 + how % 7, 1 + how % 19, 1 + how % 13, 1 + how % 3, how);
        agree(&gpu, &x, name);
    }
    assert_int_equal(stand_in.mistakes, 0);
}

static void biases_get_in_by_whichever_way_there_is(void **) {
    Cache cache;
    int (*supports[])(cublasLtEpilogue_t, cudaDataType) = {
        [](cublasLtEpilogue_t, cudaDataType) { return 1; },
        [](cublasLtEpilogue_t e, cudaDataType t) { return int(e == CUBLASLT_EPILOGUE_DEFAULT || t == CUDA_R_16BF); },
        [](cublasLtEpilogue_t e, cudaDataType) { return int(e == CUBLASLT_EPILOGUE_DEFAULT); }};
    for (auto &support : supports) {
        library(2);
        stand_in.supports = support;
        Gpu gpu;
        Rng rng = rng_for(2, PURPOSE_TEST, 0);
        for (unsigned how = 32; how < 36; how++) {
            Product x = draw(&rng, 5, 16, 9, 1, how);
            agree(&gpu, &x, "bias");
        }
        assert_int_equal(stand_in.mistakes, 0);
    }
}

static void the_fastest_kernel_with_sums_in_order_is_taken(void **) {
    Cache cache;
    library(8);
    stand_in.seconds[2] = stand_in.seconds[4] = 1e-9; // these add up in the output, or in its type
    Rng rng = rng_for(3, PURPOSE_TEST, 0);
    Gpu gpu;
    Product x = draw(&rng, 4, 8, 8, 1, 16); // adds
    agree(&gpu, &x, "first");               // timing has not added
    assert_int_equal(stand_in.last, 7);
    int before = stand_in.calls;
    agree(&gpu, &x, "again, captured");
    assert_int_equal(stand_in.calls, before + 1);
    agree(&gpu, &x, "as a graph");
    assert_int_equal(stand_in.calls, before + 1);
    assert_int_equal(gpu.counts().commands, 3); // timing goes through no list
    assert_int_equal(gpu.counts().launched, 1);
    stand_in.seconds[5] = 0.99 * stand_in.seconds[7]; // a difference that is noise
    Product y = draw(&rng, 4, 16, 8, 1, 0);
    agree(&gpu, &y, "another shape");
    assert_int_equal(stand_in.last, 5); // the earlier one stays
    assert_int_equal(stand_in.mistakes, 0);
}

static void untimed_the_first_suggestion_is_taken(void **) {
    Cache cache;
    Rng rng = rng_for(4, PURPOSE_TEST, 0);
    for (int way = 0; way < 2; way++) {
        library(8);
        if (way == 0) setenv("BIFOCAL_AUTOTUNE", "0", 1);
        Gpu gpu;
        Product x = draw(&rng, 4, 8, 8, 1, 1);
        runtime_fail(RUNTIME_MALLOC, way == 1 ? 8 : 0); // nothing to time in
        agree(&gpu, &x, "first");
        runtime_fail(RUNTIME_MALLOC, 0);
        assert_int_equal(stand_in.last, 0);
        assert_int_equal(stand_in.calls, 1);
        unsetenv("BIFOCAL_AUTOTUNE");
    }
}

static void another_process_takes_the_same_kernels(void **) {
    Cache cache;
    library(8);
    Rng rng = rng_for(5, PURPOSE_TEST, 0);
    Product x = draw(&rng, 4, 8, 8, 1, 1);
    Gpu both; // opened before anything was settled
    {
        Gpu gpu;
        agree(&gpu, &x, "first");
        assert_int_equal(stand_in.last, 7);
    }
    stand_in.seconds[0] = 1e-9; // times are other ones today
    Gpu next;
    stand_in.calls = 0;
    agree(&next, &x, "read");
    assert_int_equal(stand_in.last, 7);
    assert_int_equal(stand_in.calls, 1);
    agree(&both, &x, "timed at the same time");
    assert_int_equal(stand_in.last, 7);
    std::string wreck = "printf x >> '" + cache.file() + "'";
    assert_int_equal(system(wreck.c_str()), 0);
    Gpu damaged;
    agree(&damaged, &x, "before the damage");
    assert_int_equal(stand_in.last, 7);
    assert_int_equal(stand_in.mistakes, 0);
}

// ---- epilogues ----

static const int TANH = 1;

struct Epilogues { // products of (M, K) by (N, K)^T
    int64_t m, n, k;
    Product product;
    Array aux;
    Epilogues(Rng *rng, int64_t rows, int64_t width, int64_t inner, bool bias)
        : m(rows), n(width), k(inner), product(draw(rng, rows, width, inner, 1, 1 | 8 | (bias ? 32 : 0))),
          aux(BF16, rows * width) {
        aux.normal(rng);
        product.p.aux = aux;
    }
};

static void gelu_is_part_of_a_product_where_that_is_faster(void **) {
    Cache cache;
    library(3);
    Rng rng = rng_for(6, PURPOSE_TEST, 0);
    Gpu gpu;
    for (int bias = 0; bias < 2; bias++) {
        Epilogues e(&rng, 6, 16, 5 + bias, bias);
        Matmul *p = &e.product.p;
        p->epilogue = EPILOGUE_GELU;
        stand_in.epilogue_seconds = 0; // against a kernel more
        assert_true(gpu.wins(p));
        Array z(BF16, e.m * e.n), want(BF16, e.m * e.n);
        Matmul alone = product_alone(p);
        alone.c = z;
        cpu()->matmul(cpu(), &alone);
        cpu()->gelu_forward(cpu(), want, z, e.m * e.n, TANH, BF16);
        gpu.run(p);
        expect_near(e.aux, z, 1.0 / 64, 0.02, "what gelu was of");
        expect_near(e.product.c, want, 1.0 / 64, 0.02, "gelu");
        stand_in.epilogue_seconds = RUNTIME_KERNEL;
        Epilogues other(&rng, 6, 24, 5 + bias, bias);
        other.product.p.epilogue = EPILOGUE_GELU;
        assert_false(gpu.wins(&other.product.p)); // no faster
        assert_false(gpu.wins(&other.product.p));
    }
    assert_int_equal(stand_in.mistakes, 0);
}

static void the_slope_of_gelu_is_part_of_a_product(void **) {
    Cache cache;
    library(3);
    Rng rng = rng_for(7, PURPOSE_TEST, 0);
    Gpu gpu;
    Epilogues e(&rng, 7, 24, 9, false);
    Matmul *p = &e.product.p;
    p->epilogue = EPILOGUE_GELU_BACKWARD;
    assert_true(gpu.wins(p));
    Array dy(BF16, e.m * e.n), want(BF16, e.m * e.n);
    Matmul alone = product_alone(p);
    alone.c = dy;
    cpu()->matmul(cpu(), &alone);
    cpu()->gelu_backward(cpu(), want, dy, e.aux, e.m * e.n, TANH, BF16, false);
    gpu.run(p);
    expect_near(e.product.c, want, 1.0 / 32, 0.05, "by its argument");
    p->n = 20; // rows that are no multiple of 16 bytes
    assert_false(gpu.wins(p));
    assert_int_equal(stand_in.mistakes, 0);
}

static void sums_of_columns_are_part_of_a_weight_gradient(void **) {
    Cache cache;
    library(3);
    Rng rng = rng_for(8, PURPOSE_TEST, 0);
    Gpu gpu;
    for (unsigned add = 0; add < 2; add++) {
        int64_t out = 9, in = 16, rows = 31;
        Product x = draw(&rng, out, in, rows, 1, 1 | 2 | 4 | (add ? 16 : 0)); // dW = dy^T x
        Array sums(F32, out), want(F32, out);
        for (int64_t i = 0; i < out; i++) sums.put(i, 0.5 * double(i)), want.put(i, 0.5 * double(i));
        x.p.sums = sums.f32(), x.p.add_sums = add;
        assert_true(gpu.wins(&x.p));
        Array c(x.c);
        Matmul alone = product_alone(&x.p);
        alone.c = c;
        cpu()->matmul(cpu(), &alone);
        cpu()->sum_columns(cpu(), want.f32(), x.a, rows, out, BF16, add);
        gpu.run(&x.p);
        expect_near(x.c, c, 1e-5, 1e-4, "weights");
        expect_near(sums, want, 1e-5, 1e-4, "sums");
    }
    assert_int_equal(stand_in.mistakes, 0);
}

static void nothing_is_fused_untimed_or_in_full_precision(void **) {
    Cache cache;
    library(3);
    Rng rng = rng_for(9, PURPOSE_TEST, 0);
    Epilogues e(&rng, 8, 8, 8, true);
    e.product.p.epilogue = EPILOGUE_GELU;
    setenv("BIFOCAL_AUTOTUNE", "0", 1);
    {
        Gpu gpu;
        assert_false(gpu.wins(&e.product.p));
    }
    unsetenv("BIFOCAL_AUTOTUNE");
    Gpu gpu;
    Matmul f32 = e.product.p;
    f32.in = f32.out = F32;
    assert_false(gpu.wins(&f32));
    assert_true(gpu.wins(&e.product.p));
}

static void sums_over_nothing_are_zeros(void **) {
    Cache cache;
    library(3);
    Gpu gpu;
    Rng rng = rng_for(10, PURPOSE_TEST, 0);
    Product x = draw(&rng, 3, 5, 0, 2, 128);
    Array before(x.c);
    gpu.run(&x.p);
    for (int64_t i = 0; i < x.c.count(); i++) assert_true(x.c.at(i) == (i % 13 < 5 ? 0 : before.at(i)));
    assert_int_equal(stand_in.calls, 0);
}

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(products_of_all_orders_types_and_strides_agree),
        cmocka_unit_test(biases_get_in_by_whichever_way_there_is),
        cmocka_unit_test(the_fastest_kernel_with_sums_in_order_is_taken),
        cmocka_unit_test(untimed_the_first_suggestion_is_taken),
        cmocka_unit_test(another_process_takes_the_same_kernels),
        cmocka_unit_test(gelu_is_part_of_a_product_where_that_is_faster),
        cmocka_unit_test(the_slope_of_gelu_is_part_of_a_product),
        cmocka_unit_test(sums_of_columns_are_part_of_a_weight_gradient),
        cmocka_unit_test(nothing_is_fused_untimed_or_in_full_precision),
        cmocka_unit_test(sums_over_nothing_are_zeros),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
