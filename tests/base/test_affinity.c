/* Which processors stand beside a device, on machines whose /sys the test has made up. */
#include "base/affinity.h"
#include "base/files.h"
#include "tests/support/test.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static char *sys; // of two nodes; node 1: cores of two hardware threads, n and n + 8

static void write_text(const char *name, const char *text) {
    Error error = {0};
    char *path = temporary_path(sys, name), *slash = strrchr(path, '/');
    *slash = 0;
    assert_done(folder_create(path, &error), &error);
    *slash = '/';
    assert_done(file_write(path, text, strlen(text), &error), &error);
    free(path);
}

static int make_machine(void **state) {
    (void)state;
    sys = temporary_new();
    write_text("bus/pci/devices/0000:4e:00.0/numa_node", "1\n");
    write_text("bus/pci/devices/0000:01:00.0/numa_node", "-1\n");
    write_text("bus/pci/devices/0000:02:00.0/numa_node", "7\n");
    write_text("devices/system/node/node1/cpulist", "4-7,12-15\n");
    for (int c = 4; c < 8; c++) {
        char name[96], text[16];
        for (int thread = 0; thread < 2; thread++) {
            snprintf(name, sizeof name, "devices/system/cpu/cpu%d/topology/thread_siblings_list", c + 8 * thread);
            snprintf(text, sizeof text, "%d,%d\n", c, c + 8);
            write_text(name, text);
        }
    }
    return 0;
}

static int remove_machine(void **state) {
    (void)state;
    temporary_free(sys);
    return 0;
}

static void expect_set(const cpu_set_t *set, const char *text) {
    Buffer out = {0};
    affinity_print(&out, set);
    assert_string_equal(out.data ? out.data : "", text);
    buffer_free(&out);
}

static void the_node_of_a_device_is_found_where_the_system_says_it(void **state) {
    (void)state;
    cpu_set_t set;
    assert_int_equal(affinity_of_device(sys, "0000:4e:00.0", &set), 1);
    expect_set(&set, "4-7,12-15");
    static const char *const unknown[] = {"0000:01:00.0", "0000:02:00.0", "0000:03:00.0", ""};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(affinity_of_device(sys, unknown[i], &set), -1);
        expect_set(&set, "");
    }
}

static void threads_of_a_core_stay_together_when_processors_are_shared_out(void **state) {
    (void)state;
    static const char *const two[] = {"4-5,12-13", "6-7,14-15"}, *const three[] = {"4,12", "5-6,13", "7,14-15"};
    cpu_set_t set;
    for (int place = 0; place < 2; place++) {
        affinity_of_device(sys, "0000:4e:00.0", &set);
        affinity_share(sys, &set, place, 2);
        expect_set(&set, two[place]);
    }
    for (int place = 0; place < 3; place++) {
        affinity_of_device(sys, "0000:4e:00.0", &set);
        affinity_share(sys, &set, place, 3);
        expect_set(&set, three[place]);
    }
    affinity_of_device(sys, "0000:4e:00.0", &set);
    affinity_share(sys, &set, 3, 9); // fewer processors than places
    expect_set(&set, "4-7,12-15");
}

typedef struct Sleeper {
    pthread_mutex_t hold;
    cpu_set_t seen;
} Sleeper;

static void *sleep_and_look(void *context) {
    Sleeper *s = context;
    pthread_mutex_lock(&s->hold);
    pthread_mutex_unlock(&s->hold);
    sched_getaffinity(0, sizeof s->seen, &s->seen);
    return NULL;
}

static void binding_reaches_threads_that_run_already(void **state) {
    (void)state;
    Sleeper s = {.hold = PTHREAD_MUTEX_INITIALIZER};
    pthread_t thread;
    cpu_set_t all, one;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    one = all;
    affinity_share(sys, &one, CPU_COUNT(&all) - 1, CPU_COUNT(&all));
    assert_int_equal(CPU_COUNT(&one), 1);
    pthread_mutex_lock(&s.hold);
    assert_int_equal(pthread_create(&thread, NULL, sleep_and_look, &s), 0);
    assert_true(affinity_bind(&one));
    pthread_mutex_unlock(&s.hold);
    pthread_join(thread, NULL);
    assert_true(CPU_EQUAL(&s.seen, &one));
    assert_true(affinity_bind(&all));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_node_of_a_device_is_found_where_the_system_says_it),
        cmocka_unit_test(threads_of_a_core_stay_together_when_processors_are_shared_out),
        cmocka_unit_test(binding_reaches_threads_that_run_already),
    };
    return cmocka_run_group_tests(tests, make_machine, remove_machine);
}
