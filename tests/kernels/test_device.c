/* Which backend a device's name leads to, and every refusal on the way, with modules made for the test. */
#include "kernels/cuda.h"
#include "kernels/device.h"
#include "tests/support/test.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// name: of a file in the folder of the test's modules; NULL: nothing is named, and nothing lies beside this program
static void name_module(const char *name) {
    if (!name) {
        unsetenv("BIFOCAL_CUDA_MODULE");
        return;
    }
    char *path = temporary_path(MODULE_FOLDER, name);
    setenv("BIFOCAL_CUDA_MODULE", path, 1);
    free(path);
}

static Backend *open_device(Device device, Log *log, Error *error) {
    return device_backend_new(&(DeviceOptions){.device = device, .threads = 1}, log, error);
}

static void expect_refusal(const char *module, const char *words) {
    Error error = {0};
    name_module(module);
    assert_null(open_device(DEVICE_CUDA, NULL, &error));
    if (!strstr(error.message, words) || strncmp(error.message, "device: cuda: ", 14) != 0)
        fail_msg("'%s' does not say '%s'", error.message, words);
    assert_int_equal(error.kind, ERROR_USAGE);
}

static void cuda_is_refused_with_the_reason(void **state) {
    (void)state;
    expect_refusal(NULL, "built without CUDA");
    expect_refusal("there_is_no_such_module.so", "cannot open the CUDA module");
    expect_refusal("libcuda_module_unmarked.so", "has no bifocal_cuda_module");
    expect_refusal("libcuda_module_old.so", "belongs to another build (version 0.0.1");
    expect_refusal("libcuda_module_larger.so", "belongs to another build");
    expect_refusal("libcuda_module_bare.so", "no driver in this test");
}

static void processes_of_a_machine_take_its_gpus_in_turn(void **state) {
    (void)state;
    Error error = {0};
    name_module("libcuda_module_good.so"); // of two GPUs
    for (int rank = 0; rank < 5; rank++) {
        DeviceOptions options = {.device = rank % 2 ? DEVICE_CUDA : DEVICE_AUTO, .threads = 1, .local_rank = rank};
        DeviceSeat seat = device_seat(&options);
        Backend *b = device_backend_new(&options, NULL, &error);
        assert_string_equal(b->isa, rank % 2 ? "the other one" : "sm_90");
        assert_int_equal(seat.gpu, rank % 2);
        assert_int_equal(seat.gpus, 2);
        assert_string_equal(seat.name, rank % 2 ? "GPU 1 of a test" : "GPU 0 of a test");
        assert_string_equal(seat.pci, rank % 2 ? "0000:01:00.0" : "0000:00:00.0");
        backend_free(b);
    }
    assert_int_equal(device_seat(&(DeviceOptions){.device = DEVICE_CPU}).gpus, 0);
    name_module("libcuda_module_bare.so");
    assert_int_equal(device_seat(&(DeviceOptions){.device = DEVICE_AUTO}).gpus, 0);
}

static void auto_takes_the_gpu_where_there_is_one(void **state) {
    (void)state;
    Error error = {0};
    name_module("libcuda_module_good.so");
    assert_int_equal(cuda_count(&error), 2);
    for (int i = 0; i < 2; i++) {
        Backend *b = open_device(i ? DEVICE_AUTO : DEVICE_CUDA, NULL, &error);
        assert_string_equal(b->name, "cuda");
        backend_free(b);
    }
}

static void auto_goes_on_with_the_cpu_and_says_why(void **state) {
    (void)state;
    Error error = {0};
    char text[2048] = "";
    FILE *file = tmpfile();
    Log *log = log_new(LOG_INFO, file);
    name_module("libcuda_module_bare.so");
    Backend *b = open_device(DEVICE_AUTO, log, &error);
    assert_string_equal(b->name, "cpu");
    backend_free(b);
    log_free(log);
    rewind(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    assert_non_null(strstr(text, "no GPU is used: no driver in this test; going on with the CPU"));
}

static void the_cpu_asks_for_no_module(void **state) {
    (void)state;
    Error error = {0};
    name_module("there_is_no_such_module.so");
    Backend *b = open_device(DEVICE_CPU, NULL, &error);
    assert_string_equal(b->name, "cpu");
    backend_free(b);
}

static void the_environment_can_ask_to_wait_behind_every_kernel(void **state) {
    (void)state;
    Error error = {0};
    name_module("libcuda_module_good.so");
    static const char *const values[] = {"1", "0", ""};
    for (int i = 0; i < 3; i++) {
        setenv("BIFOCAL_CUDA_SYNC", values[i], 1);
        Backend *b = open_device(DEVICE_CUDA, NULL, &error);
        assert_string_equal(b->isa, i ? "sm_90" : "waiting");
        backend_free(b);
    }
    unsetenv("BIFOCAL_CUDA_SYNC");
}

// The module that this build made, where it made one: it opens on a machine without a driver or a GPU, and says so.
static void the_real_module_opens_or_says_what_is_missing(void **state) {
    (void)state;
    Error error = {0};
    char *path = temporary_path(BUILD_FOLDER, "libbifocal_cuda.so");
    bool built = !access(path, R_OK);
    setenv("BIFOCAL_CUDA_MODULE", path, 1);
    free(path);
    if (!built) skip();
    int count = cuda_count(&error);
    if (count < 1 && !strstr(error.message, "cannot open")) {
        assert_true(count == 0 || strstr(error.message, "driver"));
        assert_null(open_device(DEVICE_CUDA, NULL, &error));
        assert_non_null(strstr(error.message, "driver"));
    } else if (count < 1) { // the libraries it was built with are not found any more
        print_message("%s\n", error.message);
        skip();
    } else {
        Backend *b = open_device(DEVICE_CUDA, NULL, &error);
        if (!b) fail_msg("%s", error.message);
        backend_free(b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cuda_is_refused_with_the_reason),
        cmocka_unit_test(processes_of_a_machine_take_its_gpus_in_turn),
        cmocka_unit_test(auto_takes_the_gpu_where_there_is_one),
        cmocka_unit_test(auto_goes_on_with_the_cpu_and_says_why),
        cmocka_unit_test(the_cpu_asks_for_no_module),
        cmocka_unit_test(the_environment_can_ask_to_wait_behind_every_kernel),
        cmocka_unit_test(the_real_module_opens_or_says_what_is_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
