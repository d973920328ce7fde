/* GPUs by the names that CUDA and users give them. */
#include "kernels/gpus.h"
#include "tests/support/test.h"

static void assert_kind(const char *name, const char *key) {
    const GpuKind *kind = gpu_kind(name);
    if (!kind) fail_msg("%s is not known", name);
    assert_string_equal(kind->key, key);
}

static void devices_are_known_by_their_own_names(void **state) {
    (void)state;
    assert_kind("NVIDIA H100 80GB HBM3", "h100");
    assert_kind("NVIDIA H100 PCIe", "h100-pcie");
    assert_kind("NVIDIA H200", "h200");
    assert_kind("NVIDIA GH200 480GB", "gh200");
    assert_kind("NVIDIA A100-SXM4-80GB", "a100");
    assert_kind("NVIDIA A100-SXM4-40GB", "a100-40gb");
    assert_kind("NVIDIA A10", "a10");
    assert_kind("NVIDIA L40S", "l40s");
    assert_kind("NVIDIA GeForce RTX 4090", "rtx4090");
    assert_null(gpu_kind("NVIDIA A1000"));
    assert_null(gpu_kind(""));
}

static void keys_name_what_they_stand_for(void **state) {
    (void)state;
    for (int i = 0; gpu_kind_at(i); i++) assert_ptr_equal(gpu_kind(gpu_kind_at(i)->key), gpu_kind_at(i));
    assert_kind("H100", "h100");
}

// Dense, from the makers' sheets.
static void peaks_are_the_published_ones(void **state) {
    (void)state;
    assert_true(gpu_peak(gpu_kind("a100"), BF16) == 312e12 && gpu_peak(gpu_kind("a100"), F32) == 19.5e12);
    assert_true(gpu_peak(gpu_kind("h100"), BF16) == 989.4e12 && gpu_peak(gpu_kind("h200"), BF16) == 989.4e12);
    assert_true(gpu_peak(gpu_kind("h100-pcie"), BF16) == 756e12 && gpu_peak(gpu_kind("l40s"), BF16) == 362e12);
    for (int i = 0; gpu_kind_at(i); i++) assert_true(gpu_kind_at(i)->bf16 > gpu_kind_at(i)->f32);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(devices_are_known_by_their_own_names),
                                       cmocka_unit_test(keys_name_what_they_stand_for),
                                       cmocka_unit_test(peaks_are_the_published_ones)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
