/* Connections over TCP between the ranks of a run: who listens where, and a handshake with a token that only ranks of
 * this run know. What goes over them then is up to others (watch_link.h, comm_tcp.c). IPv4; times are those of
 * clock_seconds(). */
#pragma once
#include "base/error.h"
#include <netinet/in.h>
#include <stdint.h>

enum {
    LINK_ADDRESSES = 16,
    LINK_TOKEN = 16,
    LINK_ATTEMPT_SECONDS = 5, // for a handshake, and for an address where there are more
};

typedef struct LinkAddress { // where a rank listens; travels between equal programs as it is
    uint8_t token[LINK_TOKEN];
    in_port_t port; // as networks write it
    int32_t count;
    struct in_addr address[LINK_ADDRESSES]; // the loopback interface first
} LinkAddress;

// A socket, or -1. local: every rank reaches the loopback interface, so nobody else need be let in. port 0: any that is
// free. The token is a random one.
int link_listen(LinkAddress *out, bool local, int port, Error *);
// The next rank of [0, size) that calls and knows the token. A socket, or -1 when `until` is past.
int link_accept(int listener, const LinkAddress *, int size, double until, int *rank);
// A socket, or -1 with the addresses that were tried.
int link_connect(const LinkAddress *, int rank, double until, Error *);

bool link_wait(int socket, short events, double until); // poll()'s events
// All bytes; false where the connection ends before, or `until` is past.
bool link_send(int socket, const void *data, size_t bytes, double until);
bool link_receive(int socket, void *out, size_t bytes, double until);
