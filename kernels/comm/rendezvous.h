/* How processes that nothing but variables of their environment connects find one another: rank 0 listens where all
 * know, everyone tells it where itself listens, it tells everyone who is there, and each connects to all others. */
#pragma once
#include "kernels/comm/connect.h"

typedef struct Rendezvous {
    int rank, size;
    char host[256]; // of rank 0, a name or an address
    char spare[64]; // an address of it where nobody knows the name; "": none
    int port;
    uint8_t token[LINK_TOKEN]; // the same for all, another for other runs; no secret
    bool local;                // all ranks are on one machine
    double seconds;            // for all of them to come
} Rendezvous;

typedef struct Participant { // travels between equal programs as it is
    LinkAddress address;
    char host[64];    // its name, for messages
    char machine[37]; // see clock_machine
} Participant;

// BIFOCAL_RANKS, BIFOCAL_RANK, BIFOCAL_MASTER=HOST:PORT. Ranks: 0 where they are not set, then nothing is filled.
// False: they contradict themselves.
bool rendezvous_of_variables(Rendezvous *, int *ranks, Error *);
// What srun sets without any help for MPI. False: it is not srun, or says too little.
bool rendezvous_of_slurm(Rendezvous *, int ranks);
// The first node of a list like "n[01-03,7]-a,gpu5". False where it does not fit, or there is none.
bool slurm_first_node(const char *list, char *out, size_t size);

// Connects the ranks. sockets: (size), -1 for this rank; participants: (size).
bool rendezvous_meet(const Rendezvous *, int *sockets, Participant *, Error *);
