/* Which processors stand beside a device, and how a process keeps to them: what Linux says under /sys, which is given
 * as `sys` so that another tree may stand for it. */
#pragma once
#include "base/buffer.h"
#include <sched.h>
#include <stdbool.h>

// The NUMA node of a PCI device ("0000:4e:00.0") and its processors; -1 where the system does not say.
int affinity_of_device(const char *sys, const char *pci, cpu_set_t *processors);
// Keeps share `place` of `places` in the set: neighbours, and hardware threads of one core together as far as that
// leaves every place some.
void affinity_share(const char *sys, cpu_set_t *, int place, int places);
// Every thread of this process, and those to come, runs on these alone; false where the system refuses.
bool affinity_bind(const cpu_set_t *);
void affinity_print(Buffer *, const cpu_set_t *); // "0-11,48-59"
