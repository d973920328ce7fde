/* Every call on a backend's memory beside the same call of the host, on the same numbers, to the bit; on every rank of
 * a group at once. The group was opened for the backend. What differs is printed, and ends the process. */
#pragma once
#include "kernels/comm/comm_device.h"

void device_calls_check(Backend *, Comm *, uint64_t seed); // each call by itself, large and small, in place and not
void device_calls_check_many(Backend *, Comm *, uint64_t seed);      // several under way, waited for in another order
void device_calls_check_sequences(Backend *, Comm *, uint64_t seed); // the same few again and again, as in a step
