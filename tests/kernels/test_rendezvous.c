/* Ranks that find one another by variables of their environment alone, Slurm's or the program's own, and what they say
 * where that fails or one of them is lost. The ranks are child processes. */
#include "base/buffer.h"
#include "kernels/comm/comm.h"
#include "kernels/comm/rendezvous.h"
#include "tests/support/test.h"
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const variables[] = {
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "PMI_RANK",
    "PMIX_RANK",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_PROCID",
    "SLURM_STEP_NODELIST",
    "SLURM_JOB_ID",
    "SLURM_STEP_NUM_NODES",
    "SLURM_STEP_ID",
    "SLURM_LAUNCH_NODE_IPADDR",
    "BIFOCAL_RANKS",
    "BIFOCAL_RANK",
    "BIFOCAL_MASTER",
    "BIFOCAL_START_SECONDS",
};

static int forget_starters(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) unsetenv(variables[i]);
    return 0;
}

static void set_number(const char *variable, int value) {
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    setenv(variable, text, 1);
}

// ---- ranks ----

typedef int (*Rank)(int rank, Comm *world); // returns the status of the process

typedef struct Ranks {
    int status[4];
    Buffer said; // by all of them, on stderr
} Ranks;

static int run_rank(int rank, Rank function) {
    Error error = {0};
    Log *log = log_new(LOG_INFO, stderr);
    set_number("BIFOCAL_RANK", rank);
    set_number("SLURM_PROCID", rank);
    Comm *world = comm_world_new(log, &error);
    if (!world) return fprintf(stderr, "%s\n", error.message), 9;
    if (comm_rank(world) != rank) return 8;
    int status = function(rank, world);
    comm_free(world);
    log_free(log);
    return status;
}

// Ranks [first, end) of those that the environment speaks of, as processes.
static Ranks run_ranks(int first, int end, Rank function) {
    Ranks out = {0};
    pid_t processes[4];
    int ends[2];
    char piece[1024];
    ssize_t n;
    check(end <= 4 && pipe(ends) == 0);
    for (int rank = first; rank < end; rank++) {
        processes[rank] = fork();
        check(processes[rank] >= 0);
        if (processes[rank] > 0) continue;
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        _exit(run_rank(rank, function));
    }
    close(ends[1]);
    while ((n = read(ends[0], piece, sizeof piece)) > 0) buffer_append(&out.said, piece, (size_t)n);
    close(ends[0]);
    for (int rank = first; rank < end; rank++) {
        check(waitpid(processes[rank], &out.status[rank], 0) == processes[rank]);
        out.status[rank] = WIFEXITED(out.status[rank]) ? WEXITSTATUS(out.status[rank]) : 128;
    }
    return out;
}

static void assert_said(Ranks *ranks, const char *part) {
    if (!ranks->said.data || !strstr(ranks->said.data, part))
        fail_msg("no '%s' in: %s", part, ranks->said.data ? ranks->said.data : "(nothing)");
}

static void assert_all_well(Ranks *ranks, int size) {
    for (int r = 0; r < size; r++)
        if (ranks->status[r] != 0)
            fail_msg("rank %d: status %d; %s", r, ranks->status[r], ranks->said.data ? ranks->said.data : "");
    buffer_free(&ranks->said);
}

// A port that is free now.
static int free_port(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int one = socket(AF_INET, SOCK_STREAM, 0);
    check(bind(one, (struct sockaddr *)&address, size) == 0);
    check(getsockname(one, (struct sockaddr *)&address, &size) == 0);
    close(one);
    return ntohs(address.sin_port);
}

static void be_variables(int ranks, const char *host) {
    char master[64];
    snprintf(master, sizeof master, "%s:%d", host, free_port());
    set_number("BIFOCAL_RANKS", ranks);
    setenv("BIFOCAL_MASTER", master, 1);
}

// Jobs that run at the same time on one machine are others for Slurm; so are tests.
static void be_slurm(int ranks, int machines, const char *nodes) {
    set_number("SLURM_JOB_ID", (int)getpid());
    set_number("SLURM_STEP_ID", 0);
    set_number("SLURM_STEP_NUM_TASKS", ranks);
    set_number("SLURM_STEP_NUM_NODES", machines);
    setenv("SLURM_STEP_NODELIST", nodes, 1);
}

static int add_up(int rank, Comm *world) {
    int64_t sum = rank + 1, size = comm_size(world);
    comm_all_reduce(world, &sum, 1, COMM_I64, COMM_SUM, COMM_ORDERED, "test");
    return sum == size * (size + 1) / 2 ? 0 : 1;
}

// ---- they meet ----

static void ranks_meet_at_the_master(void **state) {
    (void)state;
    static const char *const hosts[] = {"127.0.0.1", "localhost", "0.0.0.0"}; // the last is no loopback address
    for (int i = 0; i < 3; i++) {
        be_variables(4, hosts[i]);
        Ranks ranks = run_ranks(0, 4, add_up);
        assert_all_well(&ranks, 4);
    }
}

static void slurms_variables_suffice_on_one_machine(void **state) {
    (void)state;
    be_slurm(3, 1, "a-node-whose-name-nobody-knows");
    Ranks ranks = run_ranks(0, 3, add_up);
    assert_all_well(&ranks, 3);
}

static void slurms_first_node_is_called_by_name_or_by_the_address_of_the_launch(void **state) {
    (void)state;
    be_slurm(2, 2, "localhost,other[1-3]");
    Ranks ranks = run_ranks(0, 2, add_up);
    assert_all_well(&ranks, 2);
    be_slurm(2, 2, "unknown.invalid,other");
    setenv("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1", 1);
    ranks = run_ranks(0, 2, add_up);
    assert_all_well(&ranks, 2);
}

static void one_rank_is_alone(void **state) {
    (void)state;
    Error error = {0};
    setenv("BIFOCAL_RANKS", "1", 1);
    Comm *world = comm_world_new(NULL, &error);
    assert_done(world != NULL, &error);
    assert_int_equal(comm_size(world), 1);
    comm_free(world);
}

// ---- they do not ----

static void who_has_not_come_is_named(void **state) {
    (void)state;
    be_variables(4, "127.0.0.1");
    setenv("BIFOCAL_START_SECONDS", "2", 1);
    Ranks ranks = run_ranks(0, 2, add_up);
    assert_int_equal(ranks.status[0], 9);
    assert_int_equal(ranks.status[1], 9);
    assert_said(&ranks, "of 4 ranks these have not come to rank 0 within 2 s: 2, 3");
    assert_said(&ranks, "rank 0 has not brought the ranks together");
    buffer_free(&ranks.said);
    setenv("BIFOCAL_START_SECONDS", "1", 1);
    ranks = run_ranks(1, 2, add_up);
    assert_int_equal(ranks.status[1], 9);
    assert_said(&ranks, "cannot reach rank 0 within 1 s");
    buffer_free(&ranks.said);
}

static void a_port_that_is_taken_is_named(void **state) {
    (void)state;
    LinkAddress taken;
    Error error = {0};
    int listener = link_listen(&taken, true, 0, &error);
    char master[64], port[16];
    assert_true(listener >= 0);
    set_number("BIFOCAL_RANKS", 2);
    snprintf(port, sizeof port, "port %d", ntohs(taken.port));
    snprintf(master, sizeof master, "127.0.0.1:%d", ntohs(taken.port));
    setenv("BIFOCAL_MASTER", master, 1);
    Ranks ranks = run_ranks(0, 1, add_up);
    assert_int_equal(ranks.status[0], 9);
    assert_said(&ranks, port);
    buffer_free(&ranks.said);
    close(listener);
}

static Rendezvous of_variables(int size, int port) {
    Error error = {0};
    Rendezvous out;
    int ranks;
    char master[64];
    snprintf(master, sizeof master, "127.0.0.1:%d", port);
    set_number("BIFOCAL_RANKS", size);
    set_number("BIFOCAL_RANK", 1);
    setenv("BIFOCAL_MASTER", master, 1);
    assert_done(rendezvous_of_variables(&out, &ranks, &error), &error);
    assert_int_equal(ranks, size);
    return out;
}

static void runs_have_tokens_of_their_own(void **state) {
    (void)state;
    Rendezvous one = of_variables(2, 3000), same = of_variables(2, 3000), larger = of_variables(3, 3000),
               elsewhere = of_variables(2, 3001);
    assert_memory_equal(one.token, same.token, LINK_TOKEN);
    assert_memory_not_equal(one.token, larger.token, LINK_TOKEN);
    assert_memory_not_equal(one.token, elsewhere.token, LINK_TOKEN);
}

static void assert_refused(const char *variable, const char *value, const char *message) {
    Error error = {0};
    Rendezvous out;
    int ranks;
    of_variables(2, 3000);
    setenv(variable, value, 1);
    assert_false(rendezvous_of_variables(&out, &ranks, &error));
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_message_has(&error, message);
    unsetenv(variable);
}

static void variables_that_contradict_themselves_are_refused(void **state) {
    (void)state;
    assert_refused("BIFOCAL_RANKS", "two", "BIFOCAL_RANKS is 'two'");
    assert_refused("BIFOCAL_RANKS", "0", "BIFOCAL_RANKS is '0'");
    assert_refused("BIFOCAL_RANK", "2", "it counts from 0 to 1");
    assert_refused("BIFOCAL_RANK", "", "BIFOCAL_RANK is ''");
    assert_refused("BIFOCAL_MASTER", "here", "it is HOST:PORT");
    assert_refused("BIFOCAL_MASTER", ":4000", "it is HOST:PORT");
    assert_refused("BIFOCAL_MASTER", "here:70000", "it is HOST:PORT");
    assert_refused("BIFOCAL_START_SECONDS", "soon", "whole number of seconds");
}

static void slurm_that_says_too_little_is_not_used(void **state) {
    (void)state;
    static const char *const needed[] = {"SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID", "SLURM_STEP_ID"};
    Rendezvous out;
    for (int i = 0; i < 4; i++) {
        be_slurm(2, 1, "n[1-2]");
        setenv("SLURM_PROCID", "1", 1);
        assert_true(rendezvous_of_slurm(&out, 2));
        assert_int_equal(out.rank, 1);
        assert_string_equal(out.host, "n1");
        assert_in_range(out.port, 20000, 39999);
        unsetenv(needed[i]);
        assert_false(rendezvous_of_slurm(&out, 2));
    }
}

static void the_first_node_of_every_form_of_list_is_found(void **state) {
    (void)state;
    static const char *const lists[][2] = {
        {"gpu05", "gpu05"},
        {"n[1-3,7],gpu05", "n1"},
        {"n[007,9-12]", "n007"},
        {"a,b", "a"},
        {"rack[1-2]n[01-03]-x,b", "rack1n01-x"},
        {"n[4]", "n4"},
    };
    char node[32];
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        assert_true(slurm_first_node(lists[i][0], node, sizeof node));
        assert_string_equal(node, lists[i][1]);
    }
    assert_false(slurm_first_node("", node, sizeof node));
    assert_false(slurm_first_node("n[1-3", node, sizeof node));
    assert_false(slurm_first_node("n[1-3]", node, 2));
    assert_false(slurm_first_node("much-too-long", node, 4));
}

// ---- a rank is lost ----

static int die(int rank, Comm *world) {
    char byte = 0;
    if (rank == 1) _exit(7);
    comm_receive(world, &byte, 1, 1, 0, "never sent");
    return 0;
}

static void a_rank_that_dies_ends_the_others_with_its_name_and_the_call(void **state) {
    (void)state;
    be_variables(2, "127.0.0.1");
    Ranks ranks = run_ranks(0, 2, die);
    assert_int_equal(ranks.status[0], 1);
    assert_said(&ranks, "rank 0 on ");
    assert_said(&ranks, "the connection to rank 1 on ");
    assert_said(&ranks, "of 1 bytes from rank 1, for receive 1 of group world (never sent), failed: that rank is gone");
    buffer_free(&ranks.said);
}

static int disagree(int rank, Comm *world) {
    char bytes[64] = "";
    if (rank == 0)
        comm_send(world, bytes, 64, 1, 0, "much");
    else
        comm_receive(world, bytes, 4, 0, 0, "little");
    return 0;
}

static void ranks_that_disagree_about_a_call_are_told_so(void **state) {
    (void)state;
    be_variables(2, "127.0.0.1");
    Ranks ranks = run_ranks(0, 2, disagree);
    assert_int_equal(ranks.status[1], 1);
    assert_said(&ranks, "for receive 1 of group world (little), failed: 64 bytes came");
    buffer_free(&ranks.said);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(ranks_meet_at_the_master, forget_starters),
        cmocka_unit_test_setup(slurms_variables_suffice_on_one_machine, forget_starters),
        cmocka_unit_test_setup(slurms_first_node_is_called_by_name_or_by_the_address_of_the_launch, forget_starters),
        cmocka_unit_test_setup(one_rank_is_alone, forget_starters),
        cmocka_unit_test_setup(who_has_not_come_is_named, forget_starters),
        cmocka_unit_test_setup(a_port_that_is_taken_is_named, forget_starters),
        cmocka_unit_test_setup(runs_have_tokens_of_their_own, forget_starters),
        cmocka_unit_test_setup(variables_that_contradict_themselves_are_refused, forget_starters),
        cmocka_unit_test_setup(slurm_that_says_too_little_is_not_used, forget_starters),
        cmocka_unit_test_setup(the_first_node_of_every_form_of_list_is_found, forget_starters),
        cmocka_unit_test_setup(a_rank_that_dies_ends_the_others_with_its_name_and_the_call, forget_starters),
        cmocka_unit_test_setup(ranks_that_disagree_about_a_call_are_told_so, forget_starters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
