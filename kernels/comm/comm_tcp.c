/* Messages between processes over TCP, a connection for every two of them: for starters that only set variables, and
 * for builds without MPI. A message is a frame and its bytes; those of one connection come in the order of their
 * sending and meet the oldest receive of their tag, or wait in memory for one. Large ones go straight to where they
 * belong. Whoever moves calls on (see comm_engine.c) reads and writes, one thread at a time; nothing here blocks. A
 * connection that is lost ends the process with a message that says who was at what. See comm_internal.h and
 * rendezvous.h. */
#include "base/clock.h"
#include "kernels/comm/comm_internal.h"
#include "kernels/comm/rendezvous.h"
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    GOODBYE = -1,           // tag of the last frame, which has no bytes
    STAGE_BYTES = 64 << 10, // read at once where a frame may begin
    AT_A_TIME = 4 << 20,    // bytes from one rank, before others have their turn
    LOOKS = 64,             // connections in one look
    CLOSE_SECONDS = 5,      // for one that is full to take the goodbye
};
static const struct timespec WATCH_FIRST = {.tv_sec = 3}; // the watch knows more of a death, and ends the process

typedef struct Frame {
    int64_t bytes;
    int32_t tag, source;
} Frame;

typedef struct Early { // a message that nobody has asked for yet
    struct Early *next;
    int tag;
    int64_t bytes, come;
    char data[];
} Early;

typedef struct Row { // of messages, linked by handle
    Message *first, **end;
} Row;

typedef struct Peer {
    int rank, socket; // socket -1: it has left, or is this rank
    bool goodbye, waits_for_room;
    Row sends, receives;
    int64_t sent;       // bytes of the first send that are gone, its frame included
    Frame frame;        // of the message that comes
    int64_t come;       // bytes of it, its frame included
    Message *receive;   // whom it is for,
    Early *early;       // or where it waits
    Early *first_early; // oldest first
    char host[64];
} Peer;

typedef struct Tcp {
    Transport transport;
    int rank, size, epoll;
    Peer *peers; // (size)
    char *stage; // (STAGE_BYTES)
    Log *log;    // borrowed; may be NULL
} Tcp;

static Message **link_of(Message *m) { return (Message **)&m->handle.pointer; }

static void row_append(Row *row, Message *m) {
    m->handle.pointer = NULL;
    if (!row->first) row->end = &row->first;
    *row->end = m;
    row->end = link_of(m);
}

static void row_remove(Row *row, Message **place) {
    Message *m = *place;
    *place = *link_of(m);
    if (!*place) row->end = place;
}

// ---- the end ----

_Noreturn static void end_run(const Tcp *tcp, const Peer *peer, const Message *m, const char *why) {
    char what[512] = "";
    if (m) message_describe(m, what, sizeof what);
    log_error(tcp->log, "rank %d on %s: the connection to rank %d on %s%s failed: %s", tcp->rank,
              tcp->peers[tcp->rank].host, peer->rank, peer->host, what, why);
    if (!tcp->log)
        fprintf(stderr, "rank %d on %s: the connection to rank %d on %s%s failed: %s\n", tcp->rank,
                tcp->peers[tcp->rank].host, peer->rank, peer->host, what, why);
    _exit(1);
}

// What this rank waits for from the other, or NULL.
static const Message *pending(const Peer *peer) {
    return peer->receive ? peer->receive : peer->receives.first ? peer->receives.first : peer->sends.first;
}

// The connection has ended, with errno `code` or 0. All is well where the other rank has left and nothing is wanted.
static void lose(Tcp *tcp, Peer *peer, int code) {
    const Message *m = pending(peer);
    if (peer->goodbye && !m) {
        close(peer->socket); // and so leaves epoll
        peer->socket = -1;
        return;
    }
    nanosleep(&WATCH_FIRST, NULL);
    end_run(tcp, peer, m, peer->goodbye ? "that rank has left the run" : code ? strerror(code) : "that rank is gone");
}

static void must_agree(const Tcp *tcp, const Peer *peer, const Message *m, int64_t bytes) {
    char why[128];
    if (m->bytes == bytes) return;
    snprintf(why, sizeof why, "%lld bytes came; the two ranks do not agree about the call", (long long)bytes);
    end_run(tcp, peer, m, why);
}

// ---- sending ----

static void watch_room(Tcp *tcp, Peer *peer, bool wanted) {
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = peer};
    if (wanted == peer->waits_for_room) return;
    peer->waits_for_room = wanted;
    check(epoll_ctl(tcp->epoll, EPOLL_CTL_MOD, peer->socket, &event) == 0);
}

// What is left of the message. As send().
static ssize_t send_rest(const Tcp *tcp, const Peer *peer, const Message *m) {
    const int64_t head = sizeof(Frame);
    Frame frame = {.bytes = m->bytes, .tag = m->tag, .source = tcp->rank};
    struct iovec parts[2];
    struct msghdr message = {.msg_iov = parts};
    if (peer->sent < head)
        parts[message.msg_iovlen++] = (struct iovec){(char *)&frame + peer->sent, (size_t)(head - peer->sent)};
    int64_t gone = peer->sent < head ? 0 : peer->sent - head;
    parts[message.msg_iovlen++] = (struct iovec){(char *)m->data + gone, (size_t)(m->bytes - gone)};
    return sendmsg(peer->socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void push(Tcp *tcp, Peer *peer) {
    for (Message *m; (m = peer->sends.first);) {
        ssize_t n = send_rest(tcp, peer, m);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) lose(tcp, peer, errno); // does not return: a message is pending
        peer->sent += n;
        if (peer->sent < (int64_t)sizeof(Frame) + m->bytes) continue;
        row_remove(&peer->sends, &peer->sends.first);
        m->complete = true;
        peer->sent = 0;
    }
    watch_room(tcp, peer, peer->sends.first != NULL);
}

// ---- receiving ----

static Message **receive_of(Peer *peer, int tag) { // the oldest, or the end of the row
    Message **place = &peer->receives.first;
    while (*place && (*place)->tag != tag) place = link_of(*place);
    return place;
}

// The frame is complete: finds out where its bytes go.
static void begin_message(const Tcp *tcp, Peer *peer) {
    const Frame *frame = &peer->frame;
    check(frame->source == peer->rank);
    if (frame->tag == GOODBYE) {
        peer->goodbye = true;
        peer->come = 0;
        return;
    }
    check(frame->bytes > 0 && !peer->goodbye);
    Message **place = receive_of(peer, frame->tag);
    if (*place) {
        peer->receive = *place;
        row_remove(&peer->receives, place);
        must_agree(tcp, peer, peer->receive, frame->bytes);
        return;
    }
    Early **last = &peer->first_early;
    while (*last) last = &(*last)->next;
    peer->early = *last = malloc(sizeof **last + (size_t)frame->bytes);
    check(peer->early);
    *peer->early = (Early){.tag = frame->tag, .bytes = frame->bytes};
}

static int64_t missing(const Peer *peer) { // bytes of the message that comes; 0: its frame is not complete
    return peer->come < (int64_t)sizeof(Frame) ? 0 : (int64_t)sizeof(Frame) + peer->frame.bytes - peer->come;
}

static char *target(const Peer *peer) {
    char *data = peer->receive ? peer->receive->data : peer->early->data;
    return data + (peer->come - (int64_t)sizeof(Frame));
}

static void arrived(Peer *peer, int64_t bytes) {
    peer->come += bytes;
    if (peer->early) peer->early->come += bytes;
    if (missing(peer) > 0) return;
    if (peer->receive) peer->receive->complete = true;
    peer->receive = NULL;
    peer->early = NULL;
    peer->come = 0;
}

static void take(const Tcp *tcp, Peer *peer, const char *data, int64_t bytes) {
    const int64_t head = sizeof(Frame);
    for (int64_t n; bytes > 0; data += n, bytes -= n) {
        if (peer->come < head) {
            n = least(bytes, head - peer->come);
            copy_bytes((char *)&peer->frame + peer->come, data, n);
            peer->come += n;
            if (peer->come == head) begin_message(tcp, peer);
        } else {
            n = least(bytes, missing(peer));
            copy_bytes(target(peer), data, n);
            arrived(peer, n);
        }
    }
}

static void pull(Tcp *tcp, Peer *peer) {
    for (int64_t taken = 0; taken < AT_A_TIME;) {
        bool straight = missing(peer) >= STAGE_BYTES;
        int64_t room = straight ? missing(peer) : STAGE_BYTES;
        ssize_t n = recv(peer->socket, straight ? target(peer) : tcp->stage, (size_t)room, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) return lose(tcp, peer, n < 0 ? errno : 0);
        if (straight)
            arrived(peer, n);
        else
            take(tcp, peer, tcp->stage, n);
        if (n < room) return; // there is no more for now
        taken += n;
    }
}

// Whether a message that came before it was asked for is, or will be, the one.
static bool take_early(const Tcp *tcp, Peer *peer, Message *m) {
    Early **place = &peer->first_early, *early;
    while (*place && (*place)->tag != m->tag) place = &(*place)->next;
    early = *place;
    if (!early) return false;
    must_agree(tcp, peer, m, early->bytes);
    *place = early->next;
    copy_bytes(m->data, early->data, early->come);
    if (early == peer->early) {
        peer->receive = m;
        peer->early = NULL;
    } else
        m->complete = true;
    free(early);
    return true;
}

// ---- the transport ----

static void tcp_post(void *state, Message *m) {
    Tcp *tcp = state;
    Peer *peer = &tcp->peers[m->peer];
    check(m->peer != tcp->rank);
    m->complete = false;
    if (!m->send && take_early(tcp, peer, m)) return;
    if (peer->socket < 0) end_run(tcp, peer, m, "that rank has left the run");
    row_append(m->send ? &peer->sends : &peer->receives, m);
    if (m->send && !peer->waits_for_room) push(tcp, peer);
}

// All connections have their turn: another rank may wait for what this call is not about.
static bool tcp_test(void *state, Message *m) {
    Tcp *tcp = state;
    struct epoll_event ready[LOOKS];
    if (m->complete) return true;
    int n = epoll_wait(tcp->epoll, ready, LOOKS, 0);
    for (int i = 0; i < n; i++) {
        Peer *peer = ready[i].data.ptr;
        if (ready[i].events & ~(uint32_t)EPOLLOUT) pull(tcp, peer);
        if (peer->socket >= 0 && ready[i].events & EPOLLOUT) push(tcp, peer);
    }
    return m->complete;
}

static void tcp_free(Tcp *tcp) {
    for (int r = 0; r < tcp->size; r++) {
        Peer *peer = &tcp->peers[r];
        if (peer->socket >= 0) close(peer->socket);
        for (Early *next; peer->first_early; peer->first_early = next) {
            next = peer->first_early->next;
            free(peer->first_early);
        }
    }
    if (tcp->epoll >= 0) close(tcp->epoll);
    free(tcp->peers);
    free(tcp->stage);
    free(tcp);
}

// No call is unfinished: what was sent is on its way, and goes on when the process has ended.
static void tcp_close(void *state) {
    Tcp *tcp = state;
    const Frame goodbye = {.tag = GOODBYE, .source = tcp->rank};
    double until = clock_seconds() + CLOSE_SECONDS;
    for (int r = 0; r < tcp->size; r++)
        if (tcp->peers[r].socket >= 0) link_send(tcp->peers[r].socket, &goodbye, sizeof goodbye, until);
    tcp_free(tcp);
}

static Tcp *tcp_new(const Rendezvous *rendezvous, const int *sockets, const Participant *all, Log *log) {
    Tcp *tcp = calloc(1, sizeof *tcp);
    check(tcp);
    *tcp = (Tcp){.rank = rendezvous->rank,
                 .size = rendezvous->size,
                 .epoll = epoll_create1(EPOLL_CLOEXEC),
                 .peers = calloc((size_t)rendezvous->size, sizeof *tcp->peers),
                 .stage = malloc(STAGE_BYTES),
                 .log = log};
    check(tcp->epoll >= 0 && tcp->peers && tcp->stage);
    bool one_machine = true;
    for (int r = 0; r < tcp->size; r++) {
        Peer *peer = &tcp->peers[r];
        *peer = (Peer){.rank = r, .socket = sockets[r]};
        memcpy(peer->host, all[r].host, sizeof peer->host);
        one_machine &= all[r].machine[0] && !strcmp(all[r].machine, all[0].machine);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = peer};
        check(peer->socket < 0 || epoll_ctl(tcp->epoll, EPOLL_CTL_ADD, peer->socket, &event) == 0);
    }
    tcp->transport = (Transport){
        .post = tcp_post, .test = tcp_test, .tag_limit = INT_MAX, .one_machine = one_machine, .close = tcp_close};
    return tcp;
}

// A process may hold few open files at first, and more when it asks.
static void allow_connections(int ranks) {
    enum { OTHERS = 1024 }; // files, shards, the watch
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= (rlim_t)ranks + OTHERS) return;
    limit.rlim_cur = limit.rlim_max < (rlim_t)ranks + OTHERS ? limit.rlim_max : (rlim_t)ranks + OTHERS;
    setrlimit(RLIMIT_NOFILE, &limit);
}

Comm *comm_tcp_new(const Rendezvous *rendezvous, Log *log, Error *error) {
    int *sockets = calloc((size_t)rendezvous->size, sizeof *sockets);
    Participant *all = calloc((size_t)rendezvous->size, sizeof *all);
    Comm *world = NULL;
    check(sockets && all);
    allow_connections(rendezvous->size);
    if (rendezvous_meet(rendezvous, sockets, all, error)) {
        Tcp *tcp = tcp_new(rendezvous, sockets, all, log);
        world = comm_world_of(engine_new(&tcp->transport, tcp), tcp->rank, tcp->size, "world");
    }
    free(sockets);
    free(all);
    return world;
}
