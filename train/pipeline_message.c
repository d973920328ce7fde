/* See pipeline_message.h. */
#include "train/pipeline_message.h"
#include <stdio.h>
#include <string.h>

#define MAGIC UINT64_C(0x6269666f63616c31)

static size_t align(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

static size_t shape_bytes(const StreamShape *s) {
    size_t bytes = dtype_size(s->dtype);
    for (int i = 0; i < s->rank; i++) bytes *= (size_t)s->shape[i];
    return bytes;
}

static void append(MessageLayout *l, int stream, const StreamShape *shape) {
    l->streams |= 1U << stream;
    l->shapes[stream] = *shape;
    l->at[stream] = l->bytes;
    l->bytes += align(shape_bytes(shape));
}

size_t message_header_bytes(void) { return align(sizeof(MessageHeader)); }

MessageLayout message_layout(const Joint *joint, const Batch *batch, const JointPass *pass, int unit) {
    MessageLayout l = {0};
    l.streams = joint_stream_shapes(joint, batch, pass, unit, l.shapes);
    return message_layout_of(&l, l.streams);
}

MessageLayout message_layout_of(const MessageLayout *all, unsigned streams) {
    MessageLayout l = {.bytes = message_header_bytes()};
    for (int s = 0; s < JOINT_STREAMS; s++)
        if (streams & all->streams & 1U << s) append(&l, s, &all->shapes[s]);
    return l;
}

MessageHeader *message_begin(void *header, const MessageLayout *layout, const MessageHeader *what) {
    MessageHeader *h = header;
    *h = *what;
    h->magic = MAGIC;
    h->streams = 0;
    memcpy(h->shapes, layout->shapes, sizeof h->shapes);
    return h;
}

typedef struct ShapeText {
    char text[96];
} ShapeText;

// "f32 (2, 8, 16)"
static ShapeText text_of(int rank, Dtype dtype, const int64_t *shape) {
    static const char *const types[] = {"f32", "bf16", "i32", "u8"};
    ShapeText t;
    size_t n = (size_t)snprintf(t.text, sizeof t.text, "%s (", (unsigned)dtype < 4 ? types[dtype] : "?");
    for (int i = 0; i < rank && i < MAX_RANK; i++)
        n += (size_t)snprintf(t.text + n, sizeof t.text - n, "%s%lld", i ? ", " : "", (long long)shape[i]);
    snprintf(t.text + n, sizeof t.text - n, ")");
    return t;
}
#define STREAM_TEXT(s) (text_of((s)->rank, (s)->dtype, (s)->shape).text) // lives as long as the call it stands in

static bool same_shape(const StreamShape *a, int rank, Dtype dtype, const int64_t *shape) {
    if (a->rank != rank || a->dtype != dtype) return false;
    for (int i = 0; i < rank; i++)
        if (a->shape[i] != shape[i]) return false;
    return true;
}

static bool check_stream(const MessageHeader *h, const MessageLayout *l, int s, Error *error) {
    const char *what = h->gradients ? "gradient of stream" : "stream", *name = joint_stream_names[s];
    const StreamShape *came = &h->shapes[s], *wanted = &l->shapes[s];
    bool here = h->streams >> s & 1, due = l->streams >> s & 1;
    if (here && !due)
        return error_set(error, ERROR_FAILED, "%s \"%s\" came, which this batch does not have", what, name);
    if (due && !here && !h->gradients)
        return error_set(error, ERROR_FAILED, "%s \"%s\", %s, did not come", what, name, STREAM_TEXT(wanted));
    if (here && !same_shape(wanted, came->rank, came->dtype, came->shape))
        return error_set(error, ERROR_FAILED, "%s \"%s\" came as %s where this batch has %s", what, name,
                         STREAM_TEXT(came), STREAM_TEXT(wanted));
    return true;
}

static bool check_header(const MessageHeader *h, const MessageHeader *expected, Error *error) {
    if (h->magic != MAGIC) return error_set(error, ERROR_FAILED, "what came is no message of a pipeline");
    if (h->step != expected->step || h->microbatch != expected->microbatch || h->boundary != expected->boundary ||
        h->gradients != expected->gradients)
        return error_set(error, ERROR_FAILED, "a message of step %lld, microbatch %d, to part %d%s came in its place",
                         (long long)h->step, h->microbatch, h->boundary, h->gradients ? ", of gradients," : "");
    return true;
}

bool message_check(const void *header, const MessageLayout *layout, const MessageHeader *expected, Error *error) {
    const MessageHeader *h = header;
    bool ok = check_header(h, expected, error);
    for (int s = 0; ok && s < JOINT_STREAMS; s++) ok = check_stream(h, layout, s, error);
    return ok ||
           error_prefix(error, "microbatch %d, boundary in front of part %d", expected->microbatch, expected->boundary);
}

bool message_check_leaving(const MessageLayout *l, const JointStreams *streams, Error *error) {
    for (int s = 0; s < JOINT_STREAMS; s++) {
        const Tensor *x = streams->of[s];
        const StreamShape *due = l->streams >> s & 1 ? &l->shapes[s] : NULL;
        if (!x && !due) continue;
        if (x && due && same_shape(due, x->rank, x->dtype, x->shape)) continue;
        return error_set(error, ERROR_FAILED, "stream \"%s\" is %s where %s was to leave", joint_stream_names[s],
                         x ? STREAM_TEXT(x) : "absent", due ? STREAM_TEXT(due) : "nothing");
    }
    return true;
}
