/* See collective.h. Sums between ranks are ordered: every rank gets the same bits, on any transport. */
#include "kernels/collective.h"
#include "base/error.h"
#include "kernels/comm/comm_device.h"

static CommType type_of(const Node *n) {
    check(n->in[0]->dtype == F32 || n->in[0]->dtype == BF16);
    return n->in[0]->dtype == F32 ? COMM_F32 : COMM_BF16;
}

static size_t row_bytes(const Node *n) { return (size_t)tensor_width(n->in[0]) * dtype_size(n->in[0]->dtype); }

bool collective_alone(const Node *n) { return comm_size(n->attributes.comm) == 1; }

int64_t collective_first(const Comm *c, int64_t rows) { return comm_share(rows, comm_rank(c), comm_size(c)); }

int64_t collective_own(const Comm *c, int64_t rows) {
    return comm_share(rows, comm_rank(c) + 1, comm_size(c)) - collective_first(c, rows);
}

void collective_sum(Node *n, void *data, int64_t count) {
    comm_device_all_reduce(tape_backend(n->tape), n->attributes.comm, data, count, type_of(n), COMM_SUM, COMM_ORDERED,
                           n->op->name);
}

// Where what comes from other ranks is put: the destination itself, or scratch where it is added to something.
static void *landing(Node *n, Destination to, int64_t rows) {
    return to.add ? tape_scratch(n, (size_t)rows * row_bytes(n)) : to.data;
}

static void land(Node *n, Destination to, const void *from, int64_t rows) {
    Backend *b = tape_backend(n->tape);
    if (to.add) b->add_in_place(b, to.data, from, rows * tensor_width(n->in[0]), to.dtype, n->in[0]->dtype);
}

void collective_gather(Node *n, Destination to, const void *own, int64_t rows) {
    void *all = landing(n, to, rows);
    comm_device_all_gather(tape_backend(n->tape), n->attributes.comm, all, own, rows, (int64_t)row_bytes(n),
                           n->op->name);
    land(n, to, all, rows);
}

void collective_scatter(Node *n, Destination to, const void *all, int64_t rows) {
    int64_t count = collective_own(n->attributes.comm, rows);
    void *own = landing(n, to, count);
    comm_device_reduce_scatter(tape_backend(n->tape), n->attributes.comm, own, all, rows, tensor_width(n->in[0]),
                               type_of(n), COMM_ORDERED, n->op->name);
    land(n, to, own, count);
}

void collective_take(Node *n, Destination to, const void *all, int64_t rows) {
    Backend *b = tape_backend(n->tape);
    int64_t count = collective_own(n->attributes.comm, rows);
    const char *own = (const char *)all + (size_t)collective_first(n->attributes.comm, rows) * row_bytes(n);
    if (to.add)
        land(n, to, own, count);
    else
        b->copy(b, to.data, own, (size_t)count * row_bytes(n));
}

double collective_bytes(const Comm *c, double bytes) { return bytes * (comm_size(c) - 1) / comm_size(c); }
