/* The calls of comm.h on a backend's memory. Where that is the host's they are those calls, to the bit and at no cost;
 * where it is not, a group is opened for it once, and its calls go
 * - staged: through the host's memory and the host's transport, whatever that is; or
 * - linked: from device to device (NCCL), where the backend can link all ranks of the group (device_link.h).
 *
 * What comm.h promises holds here too: calls of a group run in the order in which they were started, and memory given
 * to one stays untouched until it is waited for. Waiting for a linked call lets what the backend is given next wait for
 * it, and not the host. One thread uses a backend and starts and waits for its calls. */
#pragma once
#include "kernels/backend.h"
#include "kernels/comm/comm.h"

// All ranks of a group take the same way.
typedef enum DeviceRoute { ROUTE_HOST, ROUTE_STAGED, ROUTE_LINKED } DeviceRoute;

// Collective over the group, which may be NULL or of one rank (nothing happens): from now on its calls may be given
// memory of the backend, until comm_device_close, which comes before either is freed. False where a link fails.
bool comm_device_open(Comm *, Backend *, Error *);
// The same of two ranks, of which rank 0 will send to rank 1, and nothing else: what is sent is under way beside
// everything that either backend is given (device_link.h). Who opens several such groups opens them in an order that
// all have.
bool comm_device_open_messages(Comm *pair, Backend *, Error *);
void comm_device_close(Comm *); // NULL and groups that were not opened are allowed
DeviceRoute comm_device_route(const Comm *);
const char *comm_device_why(const Comm *); // it is staged; "" where it is not
// For the watchdog, from any thread. Whether a link of this process has failed, and why; ends what links have under
// way, so that no device waits for a rank that is gone.
bool comm_device_fault(const Comm *world, char *why, size_t size);
void comm_device_abort(const Comm *world);

CommRequest *comm_device_start_all_reduce(Backend *, Comm *, void *data, int64_t n, CommType, CommReduction, CommOrder,
                                          const char *what);
CommRequest *comm_device_start_reduce_scatter(Backend *, Comm *, void *out, const void *in, int64_t rows, int64_t width,
                                              CommType, CommOrder, const char *what);
CommRequest *comm_device_start_all_gather(Backend *, Comm *, void *out, const void *in, int64_t rows, int64_t row_bytes,
                                          const char *what);
CommRequest *comm_device_start_all_to_all(Backend *, Comm *, void *out, const int64_t *out_bytes, const void *in,
                                          const int64_t *in_bytes, const char *what);
CommRequest *comm_device_start_broadcast(Backend *, Comm *, void *data, int64_t bytes, int root, const char *what);
CommRequest *comm_device_start_send(Backend *, Comm *, const void *data, int64_t bytes, int to, int tag,
                                    const char *what);
CommRequest *comm_device_start_receive(Backend *, Comm *, void *data, int64_t bytes, int from, int tag,
                                       const char *what);
// Of comm_device_open_messages, where linked: a receive into memory that is free once the backend has done what it was
// given up to `point`; 0: that is free already.
int comm_device_point(Comm *pair);
CommRequest *comm_device_start_receive_behind(Backend *, Comm *pair, void *data, int64_t bytes, int point,
                                              const char *what);
// Sends and receives the same number of bytes, which two calls could not do: those of a link run one behind the other.
CommRequest *comm_device_start_exchange(Backend *, Comm *, void *out, const void *in, int64_t bytes, int with, int tag,
                                        const char *what);
// comm_wait and comm_done serve these too; a linked call is never done before it is waited for, so that what follows
// from the answer is the same in every step.

// Without the host's waiting where that can be: what the backend is given next sees the result.
void comm_device_all_reduce(Backend *, Comm *, void *data, int64_t n, CommType, CommReduction, CommOrder,
                            const char *what);
void comm_device_reduce_scatter(Backend *, Comm *, void *out, const void *in, int64_t rows, int64_t width, CommType,
                                CommOrder, const char *what);
void comm_device_all_gather(Backend *, Comm *, void *out, const void *in, int64_t rows, int64_t row_bytes,
                            const char *what);
