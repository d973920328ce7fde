/* What a backend offers that moves memory between devices by itself (NCCL): a link for each group of ranks. */
#pragma once
#include "kernels/backend.h"
#include "kernels/comm/comm.h"

typedef enum DeviceCallKind {
    CALL_ALL_REDUCE,
    CALL_REDUCE_SCATTER,
    CALL_ALL_GATHER,
    CALL_ALL_TO_ALL,
    CALL_BROADCAST,
    CALL_SEND,
    CALL_RECEIVE,
    CALL_EXCHANGE
} DeviceCallKind;

// A call of comm.h: what does not belong to its kind is 0.
typedef struct DeviceCall {
    DeviceCallKind kind;
    void *out;           // all-reduce, broadcast, receive: the data
    const void *in;      // all-reduce, broadcast: the same; send: the data; exchange: what goes, `out` what comes
    int64_t rows, width; // shared out by comm_share; a row: `width` elements of `type`
    CommType type;
    CommReduction reduction;
    CommOrder order;
    int peer, tag; // root, sender, receiver, or the other side
    int behind;    // LINK_MESSAGES: 0: all that the backend was given; what `point` said; -1: nothing
    const int64_t *out_bytes, *in_bytes; // all-to-all: (ranks) each, read before the call returns
    const char *what;
} DeviceCall;
static inline int64_t device_call_bytes(const DeviceCall *c) {
    return c->rows * c->width * (int64_t)comm_type_size(c->type);
}

typedef struct DeviceIdentity { // by which ranks find out whether they can be linked; compared as bytes
    bool can_link;              // there is something to link with here
    bool wrong;                 // what is there does not go with this program: an error, whose text is why_not
    int version;                // of it: all ranks must have the same
    unsigned char device[16];   // which device it is
    char why_not[232];          // can_link false: the reason, for the log
} DeviceIdentity;
typedef struct DeviceLinkId {
    char bytes[128];
} DeviceLinkId;

typedef struct DeviceUnderWay { // a call that a device has begun and not ended
    int64_t number;             // of those of its link: the same on all ranks
    const char *call, *what;    // "all-reduce", "gradients"
    int64_t bytes;
    int peer; // in the group; -1: all of it
} DeviceUnderWay;

typedef struct DeviceLink DeviceLink;
struct DeviceLink {
    void *state;
    // Behind all that the backend was given before. The answer goes to `wait` once, in any order among those of a link.
    int (*start)(DeviceLink *, const DeviceCall *);
    void (*wait)(DeviceLink *, int started); // what the backend is given from now on comes behind it; not the host
    // LINK_MESSAGES: this point in what the backend is given, for the `behind` of one call. Else NULL.
    int (*point)(DeviceLink *);
    bool (*under_way)(DeviceLink *, DeviceUnderWay *); // false: none is; any thread. NULL: that is not known
    const char *(*fault)(DeviceLink *);                // what went wrong on the way, NULL: nothing; any thread
    void (*abort)(DeviceLink *);                       // ends what is under way, whatever state it is in; any thread
    void (*close)(DeviceLink *);                       // frees it, once all was waited for
};

typedef enum DeviceLinkKind {
    LINK_COLLECTIVE, // of any ranks: its calls are part of what the backend is given (of its lists, where it has some)
    LINK_MESSAGES // from one of two ranks to the other: a message never holds up what the backend is given beside it,
                  // nor do lists end with it. SEND at one end alone, RECEIVE at the other, in the same order
} DeviceLinkKind;

typedef struct DeviceLinks { // of a backend
    void (*identify)(Backend *, DeviceIdentity *);
    bool (*new_id)(Backend *, DeviceLinkId *, Error *); // on one rank, for all of a group
    DeviceLink *(*open)(Backend *, DeviceLinkKind, const DeviceLinkId *, int rank, int size, const char *name,
                        Error *); // collective
} DeviceLinks;
