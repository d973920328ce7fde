/* The ways that a stage's messages take: one for each boundary and direction, to or from another stage, or from one
 * chunk of the stage to another, where nothing is sent at all. Messages of a lane arrive in the order in which they
 * were sent. Receives are posted before they are wanted, and sends are never waited for until their memory is wanted
 * again: both run beside the arithmetic. */
#pragma once
#include "kernels/comm/comm.h"

typedef struct LaneBuffers LaneBuffers; // memory of messages, used again and again
LaneBuffers *lane_buffers_new(void);
void lane_buffers_free(LaneBuffers *);          // after its lanes; NULL is allowed
double lane_buffers_bytes(const LaneBuffers *); // of all messages that there ever were at once

typedef struct Lane Lane;
// peer: the other end's rank in the group; the own one: a way inside this rank, which has one end. most: messages under
// way in a run. tag: of this lane among those between the two ranks in this direction. Buffers and group are borrowed.
Lane *lane_new(LaneBuffers *, Comm *group, int peer, int tag, int most);
void lane_free(Lane *); // NULL is allowed

// The sending end: a message to be filled, and then to go.
void *lane_message(Lane *, size_t bytes);
void lane_send(Lane *, void *message, size_t bytes);
// The receiving end: so many bytes has the message after those that were expected before.
void lane_expect(Lane *, size_t bytes);
void *lane_receive(Lane *);              // waits for the next one
bool lane_waits(const Lane *);           // whether that would have to wait
void lane_give_back(Lane *, void *data); // has been read

void lane_settle(LaneBuffers *); // waits until all that was sent has gone
