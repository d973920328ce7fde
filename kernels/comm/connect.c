/* See connect.h. */
#include "kernels/comm/connect.h"
#include "base/clock.h"
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HELLO = 0x57415401, WELCOME, HANDSHAKE_SECONDS = LINK_ATTEMPT_SECONDS };

typedef struct Hello {
    uint32_t kind;
    int32_t rank;
    uint8_t token[LINK_TOKEN];
} Hello;

// ---- who listens where ----

static void list_addresses(LinkAddress *out, bool local) {
    struct ifaddrs *all = NULL;
    out->address[out->count++].s_addr = htonl(INADDR_LOOPBACK);
    if (local || getifaddrs(&all) != 0) return;
    for (struct ifaddrs *a = all; a && out->count < LINK_ADDRESSES; a = a->ifa_next) {
        if (!a->ifa_addr || a->ifa_addr->sa_family != AF_INET || a->ifa_flags & IFF_LOOPBACK ||
            !(a->ifa_flags & IFF_UP))
            continue;
        struct sockaddr_in address;
        memcpy(&address, a->ifa_addr, sizeof address);
        out->address[out->count++] = address.sin_addr;
    }
    freeifaddrs(all);
}

int link_listen(LinkAddress *out, bool local, int port, Error *error) {
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((in_port_t)port),
                                  .sin_addr.s_addr = htonl(local ? INADDR_LOOPBACK : INADDR_ANY)};
    socklen_t size = sizeof address;
    int yes = 1;
    *out = (LinkAddress){0};
    list_addresses(out, local);
    check(getrandom(out->token, sizeof out->token, 0) == sizeof out->token);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener >= 0 && port) setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes); // of a run just ended
    if (listener >= 0 && bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, SOMAXCONN) == 0 &&
        getsockname(listener, (struct sockaddr *)&address, &size) == 0) {
        out->port = address.sin_port;
        return listener;
    }
    error_set_errno(error, ERROR_FAILED, "cannot listen for the other ranks%s", port ? " at the port they know" : "");
    if (listener >= 0) close(listener);
    return -1;
}

// ---- handshake ----

bool link_wait(int socket, short events, double until) {
    struct pollfd wait = {.fd = socket, .events = events};
    for (;;) {
        double left = until - clock_seconds();
        int n = poll(&wait, 1, left > 0 ? (int)(left * 1e3) + 1 : 0);
        if (n > 0) return true;
        if (left <= 0 || (n < 0 && errno != EINTR)) return false;
    }
}

bool link_receive(int socket, void *out, size_t bytes, double until) {
    for (size_t taken = 0; taken < bytes;) {
        if (!link_wait(socket, POLLIN, until)) return false;
        ssize_t n = recv(socket, (char *)out + taken, bytes - taken, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return false;
        taken += n > 0 ? (size_t)n : 0;
    }
    return true;
}

bool link_send(int socket, const void *data, size_t bytes, double until) {
    for (size_t sent = 0; sent < bytes;) {
        if (!link_wait(socket, POLLOUT, until)) return false;
        ssize_t n = send(socket, (const char *)data + sent, bytes - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR) return false;
        sent += n > 0 ? (size_t)n : 0;
    }
    return true;
}

static bool welcome(int socket) {
    const uint32_t answer = WELCOME;
    return send(socket, &answer, sizeof answer, MSG_NOSIGNAL) == sizeof answer;
}

static void send_at_once(int socket) {
    int yes = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

int link_accept(int listener, const LinkAddress *own, int size, double until, int *rank) {
    while (link_wait(listener, POLLIN, until)) {
        Hello hello;
        int socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (socket < 0) continue;
        if (link_receive(socket, &hello, sizeof hello, clock_seconds() + HANDSHAKE_SECONDS) && hello.kind == HELLO &&
            !memcmp(hello.token, own->token, LINK_TOKEN) && hello.rank >= 0 && hello.rank < size && welcome(socket)) {
            send_at_once(socket);
            *rank = hello.rank;
            return socket;
        }
        close(socket);
    }
    return -1;
}

static bool connect_within(int socket, const struct sockaddr_in *to, double until) {
    int failed = 0;
    socklen_t size = sizeof failed;
    if (connect(socket, (const struct sockaddr *)to, sizeof *to) == 0) return true;
    return errno == EINPROGRESS && link_wait(socket, POLLOUT, until) &&
           getsockopt(socket, SOL_SOCKET, SO_ERROR, &failed, &size) == 0 && !failed;
}

// The one who answers may be another machine with the same private address: it does not know the answer. The rank that
// is meant may still be busy with others: the last address may take until `until`, others HANDSHAKE_SECONDS.
static int try_address(const LinkAddress *a, int i, int rank, double until) {
    double soon = clock_seconds() + HANDSHAKE_SECONDS;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = a->port, .sin_addr = a->address[i]};
    Hello hello = {.kind = HELLO, .rank = rank};
    uint32_t answer;
    memcpy(hello.token, a->token, LINK_TOKEN);
    int socket_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (socket_ < 0) return -1;
    if (i + 1 == a->count || soon > until) soon = until;
    if (connect_within(socket_, &to, soon) && send(socket_, &hello, sizeof hello, MSG_NOSIGNAL) == sizeof hello &&
        link_receive(socket_, &answer, sizeof answer, soon) && answer == WELCOME) {
        send_at_once(socket_);
        return socket_;
    }
    close(socket_);
    return -1;
}

int link_connect(const LinkAddress *address, int rank, double until, Error *error) {
    char text[INET_ADDRSTRLEN], tried[LINK_ADDRESSES * (INET_ADDRSTRLEN + 2)] = "";
    for (int i = 0; i < address->count; i++) {
        int socket_ = try_address(address, i, rank, until);
        if (socket_ >= 0) return socket_;
        inet_ntop(AF_INET, &address->address[i], text, sizeof text);
        strcat(strcat(tried, i ? ", " : ""), text);
    }
    error_set(error, ERROR_FAILED, "no answer at port %d of %s: does a firewall stand between the machines?",
              ntohs(address->port), tried);
    return -1;
}
