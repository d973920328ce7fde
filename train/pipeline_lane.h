/* The ways that a stage's messages take: one for each boundary and direction, to or from another stage, or from one
 * chunk of the stage to another, where nothing is sent at all. Messages of a lane arrive in the order in which they
 * were sent. Receives are posted before they are wanted, and sends are never waited for until their memory is wanted
 * again: both run beside the arithmetic.
 *
 * Elements lie in the host's memory, behind their header, or on the device: where devices are linked, and within a
 * stage. What puts them in and takes them out are calls of the backend either way. */
#pragma once
#include "train/pipeline_channel.h"

typedef struct LaneBuffers LaneBuffers; // memory of messages, used again and again
// header_bytes: at the front of every message; the backend is borrowed.
LaneBuffers *lane_buffers_new(Backend *, size_t header_bytes);
void lane_buffers_free(LaneBuffers *);          // after its lanes; NULL is allowed
double lane_buffers_bytes(const LaneBuffers *); // of all messages that there ever were at once

typedef struct LaneMessage {
    void *header, *body; // body + n: byte n of the message; of the device's memory, or of the host's
} LaneMessage;

typedef struct Lane Lane;
// peer: the other end's rank in the group; the own one: a way inside this rank, which has one end. most: messages under
// way in a run. tag: of this lane among those between the two ranks in this direction. channel: by which it goes from
// device to device; NULL: by the host. All are borrowed.
Lane *lane_new(LaneBuffers *, Comm *group, Channel *channel, int peer, int tag, int most);
void lane_free(Lane *); // NULL is allowed

// The sending end: a message to be filled, and then to go.
LaneMessage *lane_message(Lane *, size_t bytes);
void lane_put(Lane *, LaneMessage *, size_t at, const void *from, size_t bytes); // from: the backend's memory
void lane_clear(Lane *, LaneMessage *, size_t at, size_t bytes);                 // zeros
void lane_send(Lane *, LaneMessage *);
// The receiving end: so many bytes has the message after those that were expected before.
void lane_expect(Lane *, size_t bytes);
LaneMessage *lane_receive(Lane *);                                             // waits for the next one
bool lane_waits(const Lane *);                                                 // whether that would have to wait
void lane_get(Lane *, const LaneMessage *, size_t at, void *to, size_t bytes); // to: the backend's memory
void lane_give_back(Lane *, LaneMessage *);                                    // has been read

void lane_settle(LaneBuffers *); // waits until all that was sent by the host has gone
