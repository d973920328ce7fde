/* The watch's connections: messages of a head and a payload. Sending never blocks. See connect.h for how they begin. */
#pragma once
#include "base/buffer.h"
#include <stdbool.h>
#include <stdint.h>

typedef enum WatchKind { WATCH_BEAT = 0x57415403, WATCH_END, WATCH_GOODBYE } WatchKind;

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

// For a connection that messages are to go through.
void watch_link_settle(int socket);
// Dropped where the other side has not taken what was sent before.
void watch_send(WatchLink *, WatchKind, const void *payload, size_t bytes);
// Takes in what has come. False: the connection has ended.
bool watch_receive(WatchLink *);
// The next complete message and its payload: until the next call of watch_receive. False where there is none.
bool watch_next(WatchLink *, size_t *taken, WatchMessage *head, const char **payload);
void watch_link_close(WatchLink *);
