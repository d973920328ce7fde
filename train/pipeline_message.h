/* What crosses a boundary between two parts of a pipeline: one message a microbatch and direction. A header says what
 * it is; the elements of its streams, or of their gradients, follow in one piece of memory. Both sides know from their
 * batch how large it is (joint_stream_shapes), so that it is received before anybody looks into it; then the header is
 * held against what was expected. */
#pragma once
#include "fusion/joint_units.h"

// Which streams a message has room for, and where each begins.
typedef struct MessageLayout {
    unsigned streams; // bits of JointStream
    StreamShape shapes[JOINT_STREAMS];
    size_t at[JOINT_STREAMS]; // bytes from the start
    size_t bytes;             // of all
} MessageLayout;

// What a microbatch brings over the boundary in front of `unit`.
MessageLayout message_layout(const Joint *, const Batch *, const JointPass *, int unit);
MessageLayout message_layout_of(const MessageLayout *, unsigned streams); // of some of its streams alone

typedef struct MessageHeader {
    uint64_t magic;
    int64_t step;
    int32_t microbatch, boundary; // the part behind it
    int32_t gradients;            // 0: streams on their way forward, 1: gradients on their way back
    uint32_t streams;             // that are in it; the place of another in the layout means nothing
    uint32_t wanted;              // forward: those whose gradients the sender will take
    uint32_t not_finite;          // 1: a number that is not finite was found, by the sender or before it
    StreamShape shapes[JOINT_STREAMS];
} MessageHeader;

size_t message_header_bytes(void); // in front of the first stream
// Begins a message: its header, with the shapes of `layout` and no streams yet.
MessageHeader *message_begin(void *header, const MessageLayout *layout, const MessageHeader *what);
// Whether a message is the one that is expected, with all streams of the layout (of gradients: with some of them).
// The error names microbatch, boundary and stream, with both shapes.
bool message_check(const void *header, const MessageLayout *layout, const MessageHeader *expected, Error *);
// Whether what is to go is what the other side expects: for each stream a tensor of its shape, and no others.
bool message_check_leaving(const MessageLayout *, const JointStreams *, Error *);
