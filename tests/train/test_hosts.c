/* What ranks of one machine take of it: its processors, shared evenly. */
#include "base/threads.h"
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include "train/hosts.h"
#include <unistd.h>

static void look(int rank, Comm *world, void *argument) {
    const int *ranks = argument;
    char host[64] = "";
    Arena *memory = arena_new(1024);
    Hosts hosts = hosts_gather(world, memory);
    int fair = threads_available() / *ranks;
    gethostname(host, sizeof host - 1);
    (void)rank;
    assert_int_equal(hosts.local, *ranks);
    assert_int_equal(hosts.threads, fair < 1 ? 1 : fair);
    for (int r = 0; r < *ranks; r++) assert_string_equal(hosts.names[r], host);
    arena_free(memory);
}

static void ranks_of_one_machine_share_its_processors(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 3; ranks++) ranks_run(ranks, look, &ranks);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(ranks_of_one_machine_share_its_processors)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
