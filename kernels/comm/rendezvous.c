/* See rendezvous.h. Whoever calls says after the handshake who it is, so that a call that was given up for another
 * address is not taken for a connection. Rank r calls those before it, then hears those behind it: nobody waits in a
 * circle. */
#include "kernels/comm/rendezvous.h"
#include "base/buffer.h"
#include "base/clock.h"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { GRACE_SECONDS = 5 }; // for word from rank 0, which may have begun to wait later
static const struct timespec BETWEEN_CALLS = {.tv_nsec = 50000000};

static void introduce(Participant *self) {
    gethostname(self->host, sizeof self->host - 1);
    clock_machine(self->machine);
}

// ---- connections ----

// The address that rank 0 sees is one that the network knows; loopback is no help to others.
static void put_seen_first(int socket, LinkAddress *address) {
    struct sockaddr_in seen = {0};
    socklen_t size = sizeof seen;
    if (getpeername(socket, (struct sockaddr *)&seen, &size) != 0 || size != sizeof seen) return;
    if (ntohl(seen.sin_addr.s_addr) >> 24 == IN_LOOPBACKNET) return;
    if (address->count < LINK_ADDRESSES) address->count++;
    memmove(address->address + 1, address->address, (size_t)(address->count - 1) * sizeof *address->address);
    address->address[0] = seen.sin_addr;
}

// Hears all ranks behind this one. heard: (size) what they say of themselves; NULL: known already.
static bool hear_all(const Rendezvous *r, int listener, const LinkAddress *own, int *sockets, Participant *heard,
                     double until) {
    for (int missing = r->size - 1 - r->rank; missing > 0;) {
        Participant caller;
        int rank = -1, socket = link_accept(listener, own, r->size, until, &rank);
        if (socket < 0) return false;
        if (rank <= r->rank || !link_receive(socket, &caller, sizeof caller, clock_seconds() + LINK_ATTEMPT_SECONDS) ||
            caller.address.count < 1 || caller.address.count > LINK_ADDRESSES) {
            close(socket);
            continue;
        }
        missing -= sockets[rank] < 0;
        if (sockets[rank] >= 0) close(sockets[rank]); // it tried again
        sockets[rank] = socket;
        if (!heard) continue;
        caller.host[sizeof caller.host - 1] = caller.machine[sizeof caller.machine - 1] = '\0';
        put_seen_first(socket, &caller.address);
        heard[rank] = caller;
    }
    return true;
}

static int call(const Rendezvous *r, const LinkAddress *to, const Participant *self, double until, Error *error) {
    int socket = link_connect(to, r->rank, until, error);
    if (socket < 0 || link_send(socket, self, sizeof *self, until)) return socket;
    close(socket);
    error_set(error, ERROR_FAILED, "the connection ended");
    return -1;
}

// The addresses of rank 0's host.
static bool resolve(const Rendezvous *r, LinkAddress *out, Error *error) {
    const struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
    struct addrinfo *all = NULL;
    *out = (LinkAddress){.port = htons((in_port_t)r->port)};
    memcpy(out->token, r->token, sizeof out->token);
    int failed = getaddrinfo(r->local ? "127.0.0.1" : r->host, NULL, &hints, &all);
    if (failed && r->spare[0]) failed = getaddrinfo(r->spare, NULL, &hints, &all);
    if (failed)
        return error_set(error, ERROR_FAILED, "the address of '%s', where rank 0 is, is not known: %s", r->host,
                         gai_strerror(failed));
    for (const struct addrinfo *a = all; a && out->count < LINK_ADDRESSES; a = a->ai_next) {
        struct sockaddr_in address;
        memcpy(&address, a->ai_addr, sizeof address);
        out->address[out->count++] = address.sin_addr;
    }
    freeaddrinfo(all);
    return true;
}

// Rank 0 may come last: calls until it answers.
static int call_first(const Rendezvous *r, const Participant *self, double until, Error *error) {
    LinkAddress first;
    if (!resolve(r, &first, error)) return -1;
    for (;;) {
        double soon = clock_seconds() + LINK_ATTEMPT_SECONDS;
        int socket = call(r, &first, self, soon < until ? soon : until, error);
        if (socket >= 0) return socket;
        if (clock_seconds() >= until) break;
        nanosleep(&BETWEEN_CALLS, NULL);
    }
    error_prefix(error, "rank %d on %s cannot reach rank 0 within %.0f s", r->rank, self->host, r->seconds);
    return -1;
}

// ---- who is there ----

// known: (size) who they are; NULL where rank 0 has not heard of all.
static bool name_missing(const Rendezvous *r, const int *sockets, const Participant *known, Error *error) {
    Buffer names = {0};
    for (int rank = r->rank + 1; rank < r->size; rank++) {
        if (sockets[rank] >= 0) continue;
        buffer_printf(&names, "%s%d", names.size ? ", " : "", rank);
        if (known) buffer_printf(&names, " (%s)", known[rank].host);
    }
    error_set(
        error, ERROR_FAILED,
        "of %d ranks these have not come to rank %d within %.0f s: %s. Were all started, with the same program and "
        "variables, and does no firewall stand between the machines?",
        r->size, r->rank, r->seconds, names.data ? names.data : "");
    buffer_free(&names);
    return false;
}

// Rank 0: all tell it where they listen, and it tells all.
static bool gather(const Rendezvous *r, int listener, int *sockets, Participant *all, double until, Error *error) {
    if (!hear_all(r, listener, &all[0].address, sockets, all, until)) {
        name_missing(r, sockets, NULL, error);
        return error_prefix(error, "port %d of %s", r->port, all[0].host);
    }
    for (int rank = 1; rank < r->size; rank++)
        if (!link_send(sockets[rank], all, (size_t)r->size * sizeof *all, until))
            return error_set(error, ERROR_FAILED, "rank %d (%s) has come and is gone again", rank, all[rank].host);
    return true;
}

static bool learn(const Rendezvous *r, int *sockets, Participant *all, double until, Error *error) {
    const Participant self = all[r->rank];
    sockets[0] = call_first(r, &self, until, error);
    if (sockets[0] < 0) return false;
    double last = clock_seconds() + r->seconds + GRACE_SECONDS;
    if (link_receive(sockets[0], all, (size_t)r->size * sizeof *all, last)) return true;
    return error_set(error, ERROR_FAILED, "rank %d on %s: rank 0 has not brought the ranks together: see what it says",
                     r->rank, self.host);
}

// All but rank 0, once all know of all.
static bool join_others(const Rendezvous *r, int listener, const LinkAddress *own, int *sockets, const Participant *all,
                        Error *error) {
    double until = clock_seconds() + r->seconds;
    for (int rank = 1; rank < r->rank; rank++) {
        sockets[rank] = call(r, &all[rank].address, &all[r->rank], until, error);
        if (sockets[rank] < 0)
            return error_prefix(error, "rank %d (%s) cannot reach rank %d (%s)", r->rank, all[r->rank].host, rank,
                                all[rank].host);
    }
    return hear_all(r, listener, own, sockets, NULL, until) || name_missing(r, sockets, all, error);
}

bool rendezvous_meet(const Rendezvous *r, int *sockets, Participant *all, Error *error) {
    Participant *self = &all[r->rank];
    double until = clock_seconds() + r->seconds;
    bool first = r->rank == 0, ok;
    for (int rank = 0; rank < r->size; rank++) sockets[rank] = -1;
    int listener = link_listen(&self->address, r->local, first ? r->port : 0, error);
    introduce(self);
    if (listener < 0)
        return first ? error_prefix(error, "rank 0 on %s, port %d", self->host, r->port)
                     : error_prefix(error, "rank %d on %s", r->rank, self->host);
    if (first) {
        memcpy(self->address.token, r->token, sizeof r->token);
        ok = gather(r, listener, sockets, all, until, error);
    } else {
        const LinkAddress own = self->address;
        ok = learn(r, sockets, all, until, error) && join_others(r, listener, &own, sockets, all, error);
    }
    close(listener);
    for (int rank = 0; rank < r->size && !ok; rank++)
        if (sockets[rank] >= 0) close(sockets[rank]);
    return ok;
}
