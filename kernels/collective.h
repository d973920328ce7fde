/* What the operators between tensor ranks are made of: rows that are all here, or shared out over a group (comm_share).
 * N rows in all, of C elements; a rank's own rows may be none. */
#pragma once
#include "kernels/tape.h"

bool collective_alone(const Node *);                  // a group of one: the output is a view of the input
int64_t collective_first(const Comm *, int64_t rows); // this rank's first row
int64_t collective_own(const Comm *, int64_t rows);   // how many it has
// In the group of node n, between tensors of its input's type and width; `rows` of all ranks together:
void collective_sum(Node *n, void *data, int64_t count);                         // over the ranks, in place
void collective_gather(Node *n, Destination to, const void *own, int64_t rows);  // all ranks' rows
void collective_scatter(Node *n, Destination to, const void *all, int64_t rows); // own rows of the ranks' sum
void collective_take(Node *n, Destination to, const void *all, int64_t rows);    // own rows, nothing is sent
// Bytes that pass a rank when `bytes` are gathered or scattered; a sum is both.
double collective_bytes(const Comm *, double bytes);
