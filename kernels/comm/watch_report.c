/* See watch_report.h. */
#include "kernels/comm/watch_report.h"
#include "base/clock.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

// The boot of this machine, its space of process numbers and its network: where all three are equal, processes share a
// loopback interface.
void watch_identity(WatchIdentity *out) {
    static const char *const spaces[] = {"/proc/self/ns/pid", "/proc/self/ns/net"};
    *out = (WatchIdentity){.process = (int32_t)getpid()};
    if (gethostname(out->host, sizeof out->host - 1) != 0) snprintf(out->host, sizeof out->host, "?");
    clock_machine(out->machine);
    for (int i = 0; i < 2; i++) {
        size_t used = strlen(out->machine);
        ssize_t n = readlink(spaces[i], out->machine + used, sizeof out->machine - 1 - used);
        out->machine[used + (n > 0 ? (size_t)n : 0)] = 0;
    }
}

void watch_report_free(WatchReport *report) { buffer_free(&report->members); }

void watch_observe(WatchReport *out, const Comm *world, int64_t step, double awake) {
    CommStatus now = comm_status(world, &out->members);
    WatchState *s = &out->state;
    *s = (WatchState){.step = step};
    if (!now.call) return;
    s->number = now.number;
    s->waiting = clock_seconds() - (now.since > awake ? now.since : awake);
    snprintf(s->group, sizeof s->group, "%s", now.group);
    if (now.device && now.peer >= 0)
        snprintf(s->call, sizeof s->call, "GPU %s (rank %d)", now.call, now.peer);
    else
        snprintf(s->call, sizeof s->call, "%s%s", now.device ? "GPU " : "", now.call);
    snprintf(s->what, sizeof s->what, "%s", now.what ? now.what : "");
}

void watch_name(Buffer *out, int rank, const WatchIdentity *identity) {
    buffer_printf(out, "rank %d (%s, process %d)", rank, identity->host, identity->process);
}

static void name_call(Buffer *out, const WatchState *s) {
    buffer_printf(out, "%s #%lld '%s' of group %s", s->call, (long long)s->number, s->what, s->group);
}

void watch_doing(Buffer *out, const WatchState *s) {
    if (!s->number) {
        buffer_text(out, "computing");
        return;
    }
    buffer_text(out, "waiting in ");
    name_call(out, s);
    buffer_printf(out, " for %.1f s", s->waiting);
}

int watch_longest(const WatchReport *reports, int count) {
    int longest = -1;
    for (int r = 0; r < count; r++)
        if (reports[r].state.number && (longest < 0 || reports[r].state.waiting > reports[longest].state.waiting))
            longest = r;
    return longest;
}

static bool same_call(const WatchReport *a, const WatchReport *b) {
    return a->state.number == b->state.number && !strcmp(a->state.group, b->state.group) &&
           a->members.size == b->members.size && !memcmp(a->members.data, b->members.data, a->members.size);
}

// The members that are in the same call as `rank`, or those that are not, with what they do instead.
static void list_members(Buffer *out, const WatchReport *reports, int rank, bool there, const char *before) {
    const Buffer *members = &reports[rank].members;
    for (size_t i = 0; i < members->size / sizeof(int32_t); i++) {
        const int member = ((const int32_t *)(const void *)members->data)[i];
        if (same_call(&reports[rank], &reports[member]) != there) continue;
        buffer_printf(out, "%srank %d", before, member);
        before = ", ";
        if (there) continue;
        buffer_text(out, " (");
        if (reports[member].silent) buffer_text(out, "silent; last seen ");
        watch_doing(out, &reports[member].state);
        buffer_text(out, ")");
    }
}

void watch_account(Buffer *out, const WatchReport *reports, int rank) {
    name_call(out, &reports[rank].state);
    buffer_printf(out, " has waited for %.1f s; there: ", reports[rank].state.waiting);
    list_members(out, reports, rank, true, "");
    list_members(out, reports, rank, false, "; not there: ");
}
