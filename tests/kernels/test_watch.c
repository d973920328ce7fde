/* What the watch says and does when ranks die, stop or do not come. Ranks are threads of a child process here:
 * the end of one is the end of all, so a case is what the child's log says and how it ended. Deaths of processes are
 * tested on the program itself (cli.launch). */
#include "base/clock.h"
#include "base/files.h"
#include "kernels/comm/watch.h"
#include "kernels/comm/connect.h"
#include "kernels/comm/watch_link.h"
#include "kernels/comm/watch_report.h"
#include "tests/support/test.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RANKS = 4, COME_BACK = 42 };

typedef struct Rank {
    Comm *world;
    Log *log;
    void (*work)(struct Rank *, Watch *);
} Rank;

static void *run_rank(void *context) {
    Rank *rank = context;
    Error error = {0};
    Watch *watch;
    if (!watch_open(&watch, rank->world, rank->log, &error)) {
        log_error(rank->log, "watch_open: %s", error.message);
        _exit(3);
    }
    rank->work(rank, watch);
    watch_close(watch);
    return NULL;
}

_Noreturn static void run_child(const char *path, void (*work)(Rank *, Watch *)) {
    Comm *ends[RANKS];
    Rank ranks[RANKS];
    pthread_t threads[RANKS];
    Error error = {0};
    FILE *nothing = fopen("/dev/null", "w");
    check(nothing);
    Log *log = log_new(LOG_INFO, nothing);
    check(log_open_file(log, path, &error));
    comm_threads_new(RANKS, ends);
    for (int r = 0; r < RANKS; r++) {
        ranks[r] = (Rank){ends[r], log, work};
        check(pthread_create(&threads[r], NULL, run_rank, &ranks[r]) == 0);
    }
    for (int r = 0; r < RANKS; r++) check(pthread_join(threads[r], NULL) == 0);
    _exit(COME_BACK);
}

// The child's exit status; what it logged.
static int run(void (*work)(Rank *, Watch *), Buffer *log) {
    int status;
    Error error = {0};
    char *folder = temporary_new(), *path = temporary_path(folder, "log.txt");
    pid_t child = fork();
    check(child >= 0);
    if (child == 0) run_child(path, work);
    check(waitpid(child, &status, 0) == child);
    assert_done(file_read(path, log, &error), &error);
    temporary_free(folder);
    free(path);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void assert_says(const Buffer *log, const char *part) {
    if (!strstr(log->data, part)) fail_msg("'%s' is not in the log:\n%s", part, log->data);
}

static void work_in_order(Rank *rank, Watch *watch) {
    watch_limit(watch, 60);
    for (int step = 1; step < 20; step++) {
        watch_step(watch, step);
        comm_barrier(rank->world, "steps");
    }
}

static void ranks_that_all_arrive_are_left_alone(void **state) {
    (void)state;
    Buffer log = {0};
    assert_int_equal(run(work_in_order, &log), COME_BACK);
    assert_int_equal(log.size, 0);
    buffer_free(&log);
}

static void work_and_stay_away(Rank *rank, Watch *watch) {
    Comm *odd = comm_split(rank->world, comm_rank(rank->world) % 2, 0, "pair");
    watch_limit(watch, 0.5);
    watch_step(watch, 8);
    if (comm_rank(rank->world) == 3) sleep(600);
    if (comm_rank(rank->world) % 2) comm_barrier(odd, "apart");
    comm_barrier(rank->world, "steps");
}

static void a_rank_that_does_not_come_is_named_with_the_call_and_who_is_there(void **state) {
    (void)state;
    Buffer log = {0};
    assert_int_equal(run(work_and_stay_away, &log), 1);
    // Ranks 0 and 2 stand in the barrier of all, rank 1 in that of 1 and 3: either may be the one that stands longest.
    if (strstr(log.data, "'apart' of group pair has waited"))
        assert_says(&log, "s; there: rank 1; not there: rank 3 (computing). Rank ");
    else {
        assert_says(&log, "'steps' of group world has waited");
        assert_says(&log, "s; there: rank 0, rank 2; not there: rank 1 (waiting in barrier #1 'apart' of group pair");
        assert_says(&log, "rank 3 (computing). Rank ");
    }
    assert_says(&log, ", at step 8, was ");
    buffer_free(&log);
}

// ---- sentences ----

static void set_call(WatchReport *report, int64_t number, const char *group, double waiting, const int32_t *members,
                     size_t count) {
    report->state = (WatchState){.step = 5, .number = number, .waiting = waiting};
    strcpy(report->state.group, group);
    strcpy(report->state.call, "all-reduce");
    strcpy(report->state.what, "gradients");
    buffer_append(&report->members, members, count * sizeof *members);
}

static void calls_are_told_apart_by_number_and_members(void **state) {
    (void)state;
    WatchReport reports[5] = {0};
    Buffer text = {0};
    assert_int_equal(watch_longest(reports, 5), -1);
    set_call(&reports[0], 7, "data", 61, (int32_t[]){0, 2, 4}, 3);
    set_call(&reports[1], 7, "data", 60.5, (int32_t[]){1, 3}, 2); // the same number in another group of that name
    set_call(&reports[2], 6, "data", 60, (int32_t[]){0, 2, 4}, 3);
    reports[2].silent = true;
    set_call(&reports[4], 7, "data", 3, (int32_t[]){0, 2, 4}, 3);
    assert_int_equal(watch_longest(reports, 5), 0);
    watch_account(&text, reports, 0);
    assert_string_equal(text.data,
                        "all-reduce #7 'gradients' of group data has waited for 61.0 s; there: rank 0, rank 4; not "
                        "there: rank 2 (silent; last seen waiting in all-reduce #6 'gradients' of group data for 60.0 "
                        "s)");
    buffer_clear(&text);
    watch_account(&text, reports, 1);
    assert_string_equal(text.data, "all-reduce #7 'gradients' of group data has waited for 60.5 s; there: rank 1; not "
                                   "there: rank 3 (computing)");
    buffer_free(&text);
    for (int r = 0; r < 5; r++) watch_report_free(&reports[r]);
}

static void a_process_is_known_by_rank_host_and_number(void **state) {
    (void)state;
    WatchIdentity own;
    Buffer text = {0};
    watch_identity(&own);
    assert_int_equal(own.process, getpid());
    assert_true(own.host[0] && own.machine[0]);
    strcpy(own.host, "node7");
    own.process = 4711;
    watch_name(&text, 2, &own);
    assert_string_equal(text.data, "rank 2 (node7, process 4711)");
    buffer_free(&text);
}

// ---- connections ----

typedef struct Door {
    LinkAddress address;
    int listener, socket, rank;
} Door;

static void *keep_door(void *context) {
    Door *door = context;
    door->socket = link_accept(door->listener, &door->address, RANKS, clock_seconds() + 60, &door->rank);
    return NULL;
}

static void only_who_knows_the_token_gets_in(void **state) {
    (void)state;
    Error error = {0};
    Door door = {.rank = -1};
    pthread_t keeper;
    door.listener = link_listen(&door.address, true, 0, &error);
    assert_done(door.listener >= 0, &error);
    check(pthread_create(&keeper, NULL, keep_door, &door) == 0);
    LinkAddress wrong = door.address;
    wrong.token[LINK_TOKEN - 1] ^= 1;
    assert_int_equal(link_connect(&wrong, 2, clock_seconds() + 60, &error), -1);
    assert_message_has(&error, "127.0.0.1");
    assert_int_equal(link_connect(&door.address, RANKS, clock_seconds() + 60, &error), -1); // no such rank
    int own = link_connect(&door.address, 2, clock_seconds() + 60, &error);
    assert_done(own >= 0, &error);
    check(pthread_join(keeper, NULL) == 0);
    assert_int_equal(door.rank, 2);
    assert_true(door.socket >= 0);
    close(own);
    close(door.socket);
    close(door.listener);
}

static void messages_arrive_whole_and_before_the_end(void **state) {
    (void)state;
    int pair[2];
    WatchMessage head;
    const char *payload;
    size_t taken = 0;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    WatchLink from = {.socket = pair[0]}, to = {.socket = pair[1]};
    watch_send(&from, WATCH_BEAT, "12345", 5);
    assert_true(watch_receive(&to));
    assert_true(watch_next(&to, &taken, &head, &payload));
    assert_int_equal(head.kind, WATCH_BEAT);
    assert_int_equal(head.bytes, 5);
    assert_memory_equal(payload, "12345", 5);
    assert_false(watch_next(&to, &taken, &head, &payload));
    WatchMessage cut = {.kind = WATCH_END, .bytes = 100}; // of which only the head comes
    watch_send(&from, WATCH_GOODBYE, NULL, 0);
    assert_int_equal(write(pair[0], &cut, sizeof cut), sizeof cut);
    watch_link_close(&from);
    assert_false(watch_receive(&to)); // ended; what came before is there
    taken = 0;
    assert_true(watch_next(&to, &taken, &head, &payload));
    assert_int_equal(head.kind, WATCH_GOODBYE);
    assert_false(watch_next(&to, &taken, &head, &payload));
    watch_link_close(&to);
}

static void a_single_rank_is_not_watched(void **state) {
    (void)state;
    Error error = {0};
    Comm *alone = comm_self_new();
    Watch *watch;
    assert_done(watch_open(&watch, alone, NULL, &error), &error);
    assert_null(watch);
    watch_limit(watch, 1);
    watch_step(watch, 1);
    watch_close(watch);
    comm_free(alone);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_that_all_arrive_are_left_alone),
        cmocka_unit_test(a_rank_that_does_not_come_is_named_with_the_call_and_who_is_there),
        cmocka_unit_test(calls_are_told_apart_by_number_and_members),
        cmocka_unit_test(a_process_is_known_by_rank_host_and_number),
        cmocka_unit_test(only_who_knows_the_token_gets_in),
        cmocka_unit_test(messages_arrive_whole_and_before_the_end),
        cmocka_unit_test(a_single_rank_is_not_watched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
