/* The watch's connections: who listens where, a handshake with a token that only ranks of this run know, and messages
 * of a head and a payload. Sending never blocks. */
#pragma once
#include "base/buffer.h"
#include "base/error.h"
#include <netinet/in.h>
#include <stdint.h>

enum { WATCH_ADDRESSES = 16, WATCH_TOKEN = 16 };

typedef struct WatchAddress { // where a rank listens; travels between equal programs as it is
    uint8_t token[WATCH_TOKEN];
    in_port_t port;
    int32_t count;
    struct in_addr address[WATCH_ADDRESSES]; // the loopback interface first
} WatchAddress;

// local: every rank reaches the loopback interface, so nobody else need be let in. A socket, or -1.
int watch_listen(WatchAddress *out, bool local, Error *);
// The next rank of [0, size) that calls and knows the token. A socket, or -1 when `until` (clock_seconds) is past.
int watch_accept(int listener, const WatchAddress *, int size, double until, int *rank);
// A socket, or -1 with the addresses that were tried.
int watch_connect(const WatchAddress *, int rank, double until, Error *);

typedef enum WatchKind { WATCH_HELLO = 0x57415401, WATCH_WELCOME, WATCH_BEAT, WATCH_END, WATCH_GOODBYE } WatchKind;

typedef struct WatchMessage { // a head; `bytes` of payload follow
    uint32_t kind;
    uint32_t bytes;
} WatchMessage;

typedef struct WatchLink {
    int rank, socket; // socket -1: ended
    double heard;     // clock_seconds() of the last message
    bool goodbye;     // it has left in order
    Buffer in;        // what came and is not yet taken
} WatchLink;

// Dropped where the other side has not taken what was sent before.
void watch_send(WatchLink *, WatchKind, const void *payload, size_t bytes);
// Takes in what has come. False: the connection has ended.
bool watch_receive(WatchLink *);
// The next complete message and its payload: until the next call of watch_receive. False where there is none.
bool watch_next(WatchLink *, size_t *taken, WatchMessage *head, const char **payload);
void watch_link_close(WatchLink *);
