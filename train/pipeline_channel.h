/* An end of the way that messages take from one stage's device to another's: their elements go from device memory to
 * device memory, their headers by the host, which so knows what comes without waiting for any device. What has been
 * started is never waited for by the host. Messages arrive in the order in which they were sent, whatever lane of the
 * pipeline they belong to. */
#pragma once
#include "kernels/backend.h"
#include "kernels/comm/comm.h"

typedef struct ChannelMessage {
    void *header; // (header_bytes), host
    void *body;   // (bytes) device; its first header_bytes stay where they are
} ChannelMessage;

typedef struct Channel Channel;
// pair: comm_device_open_messages, linked; its rank 0 is the sending end. room: messages under way at the most, of the
// sending end. Backend and group are borrowed.
Channel *channel_new(Backend *, Comm *pair, int room, size_t header_bytes);
void channel_free(Channel *);          // once all that was sent was received; NULL is allowed
double channel_bytes(const Channel *); // of device memory
void channel_settle(Channel *);        // sending end: until all headers have gone

// The sending end: a message to be filled by calls of the backend, and then to go, to whoever receives `tag`.
ChannelMessage *channel_message(Channel *, size_t bytes);
void channel_send(Channel *, ChannelMessage *, int tag);
// The receiving end.
void channel_expect(Channel *);                      // one message more will come
bool channel_waits(const Channel *, int tag);        // whether the next one of the tag is not known yet
ChannelMessage *channel_receive(Channel *, int tag); // what the backend is given from now on finds it
void channel_give_back(Channel *, ChannelMessage *); // what the backend was given up to now has read it
