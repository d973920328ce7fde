/* See agree.h. */
#include "train/agree.h"
#include <stdlib.h>

bool agree(Comm *world, bool ok, Error *error) {
    int64_t lowest = ok ? INT64_MAX : comm_rank(world), failed = !ok;
    comm_all_reduce(world, &failed, 1, COMM_I64, COMM_SUM, COMM_FAST, "agreement");
    if (!failed) return true;
    comm_all_reduce(world, &lowest, 1, COMM_I64, COMM_MIN, COMM_FAST, "agreement");
    Error said = ok ? (Error){0} : *error;
    comm_broadcast(world, &said, sizeof said, (int)lowest, "what went wrong");
    *error = said;
    return failed == comm_size(world) ? false : error_prefix(error, "rank %d", (int)lowest);
}

bool agree_with_first(Comm *world, bool ok, Error *error) {
    Error said = ok ? (Error){0} : *error;
    comm_broadcast(world, &said, sizeof said, 0, "what went wrong");
    if (!said.kind) return true;
    *error = said;
    return false;
}

Vote agree_on(Comm *world, const Vote *own, bool counts) {
    int ranks = comm_size(world);
    Vote sum = {0}, *all = calloc((size_t)ranks, sizeof *all), given = *own;
    check(all);
    if (!counts) {
        given.bad = given.draws = given.tokens = given.images = 0;
        given.flop = given.by_count = (JointFlop){0};
    }
    comm_all_gather(world, all, &given, ranks, sizeof *all, "agreement");
    for (int r = 0; r < ranks; r++) { // in order: every rank gets the same bits
        sum.failed += all[r].failed;
        if (all[r].stop > sum.stop) sum.stop = all[r].stop;
        sum.written += all[r].written;
        sum.bad += all[r].bad;
        sum.draws += all[r].draws;
        sum.tokens += all[r].tokens;
        sum.images += all[r].images;
        joint_flop_add(&sum.flop, &all[r].flop);
        joint_flop_add(&sum.by_count, &all[r].by_count);
        if (all[r].data_wait > sum.data_wait) sum.data_wait = all[r].data_wait;
    }
    free(all);
    return sum;
}
