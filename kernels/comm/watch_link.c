/* See watch_link.h. */
#include "kernels/comm/watch_link.h"
#include "base/clock.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST_WAITING = 1 << 16, SEND_BUFFER = 1 << 18, MOST_PAYLOAD = 1 << 20, HANDSHAKE_SECONDS = 5 };

typedef struct Hello {
    WatchMessage head;
    int32_t rank;
    uint8_t token[WATCH_TOKEN];
} Hello;

// ---- who listens where ----

static void list_addresses(WatchAddress *out, bool local) {
    struct ifaddrs *all = NULL;
    out->address[out->count++].s_addr = htonl(INADDR_LOOPBACK);
    if (local || getifaddrs(&all) != 0) return;
    for (struct ifaddrs *a = all; a && out->count < WATCH_ADDRESSES; a = a->ifa_next) {
        if (!a->ifa_addr || a->ifa_addr->sa_family != AF_INET || a->ifa_flags & IFF_LOOPBACK ||
            !(a->ifa_flags & IFF_UP))
            continue;
        struct sockaddr_in address;
        memcpy(&address, a->ifa_addr, sizeof address);
        out->address[out->count++] = address.sin_addr;
    }
    freeifaddrs(all);
}

int watch_listen(WatchAddress *out, bool local, Error *error) {
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(local ? INADDR_LOOPBACK : INADDR_ANY)};
    socklen_t size = sizeof address;
    *out = (WatchAddress){0};
    list_addresses(out, local);
    check(getrandom(out->token, sizeof out->token, 0) == sizeof out->token);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener >= 0 && bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, SOMAXCONN) == 0 &&
        getsockname(listener, (struct sockaddr *)&address, &size) == 0) {
        out->port = address.sin_port;
        return listener;
    }
    error_set_errno(error, ERROR_FAILED, "cannot listen for the other ranks");
    if (listener >= 0) close(listener);
    return -1;
}

// ---- handshake ----

static bool wait_for(int socket, short events, double until) {
    struct pollfd wait = {.fd = socket, .events = events};
    for (;;) {
        double left = until - clock_seconds();
        int n = poll(&wait, 1, left > 0 ? (int)(left * 1e3) + 1 : 0);
        if (n > 0) return true;
        if (left <= 0 || (n < 0 && errno != EINTR)) return false;
    }
}

static bool receive_exactly(int socket, void *out, size_t bytes, double until) {
    for (size_t taken = 0; taken < bytes;) {
        if (!wait_for(socket, POLLIN, until)) return false;
        ssize_t n = recv(socket, (char *)out + taken, bytes - taken, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return false;
        taken += n > 0 ? (size_t)n : 0;
    }
    return true;
}

static bool send_head(int socket, WatchKind kind) {
    WatchMessage head = {.kind = kind};
    return send(socket, &head, sizeof head, MSG_NOSIGNAL) == sizeof head;
}

static void settle(int socket) {
    int yes = 1, size = SEND_BUFFER;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
}

int watch_accept(int listener, const WatchAddress *own, int size, double until, int *rank) {
    while (wait_for(listener, POLLIN, until)) {
        Hello hello;
        int socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (socket < 0) continue;
        if (receive_exactly(socket, &hello, sizeof hello, clock_seconds() + HANDSHAKE_SECONDS) &&
            hello.head.kind == WATCH_HELLO && !memcmp(hello.token, own->token, WATCH_TOKEN) && hello.rank >= 0 &&
            hello.rank < size && send_head(socket, WATCH_WELCOME)) {
            settle(socket);
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
    return errno == EINPROGRESS && wait_for(socket, POLLOUT, until) &&
           getsockopt(socket, SOL_SOCKET, SO_ERROR, &failed, &size) == 0 && !failed;
}

// The one who answers may be another machine with the same private address: it does not know the answer. The rank that
// is meant may still be busy with others: the last address may take until `until`, others HANDSHAKE_SECONDS.
static int try_address(const WatchAddress *a, int i, int rank, double until) {
    double soon = clock_seconds() + HANDSHAKE_SECONDS;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = a->port, .sin_addr = a->address[i]};
    Hello hello = {.head.kind = WATCH_HELLO, .rank = rank};
    WatchMessage answer;
    memcpy(hello.token, a->token, WATCH_TOKEN);
    int socket_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (socket_ < 0) return -1;
    if (i + 1 == a->count || soon > until) soon = until;
    if (connect_within(socket_, &to, soon) && send(socket_, &hello, sizeof hello, MSG_NOSIGNAL) == sizeof hello &&
        receive_exactly(socket_, &answer, sizeof answer, soon) && answer.kind == WATCH_WELCOME) {
        settle(socket_);
        return socket_;
    }
    close(socket_);
    return -1;
}

int watch_connect(const WatchAddress *address, int rank, double until, Error *error) {
    char text[INET_ADDRSTRLEN], tried[WATCH_ADDRESSES * (INET_ADDRSTRLEN + 2)] = "";
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

// ---- messages ----

void watch_send(WatchLink *link, WatchKind kind, const void *payload, size_t bytes) {
    WatchMessage head = {.kind = kind, .bytes = (uint32_t)bytes};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)payload, bytes}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    int waiting = 0;
    if (link->socket < 0 || bytes > MOST_WAITING) return;
    if (ioctl(link->socket, SIOCOUTQ, &waiting) != 0 || waiting > MOST_WAITING) return; // so that it never goes in part
    sendmsg(link->socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT); // an error shows when it is read from
}

bool watch_receive(WatchLink *link) {
    char piece[4096];
    for (;;) {
        ssize_t n = recv(link->socket, piece, sizeof piece, MSG_DONTWAIT);
        if (n > 0) buffer_append(&link->in, piece, (size_t)n);
        if (n == 0 || (n < 0 && errno != EINTR)) return n < 0 && errno == EAGAIN;
    }
}

bool watch_next(WatchLink *link, size_t *taken, WatchMessage *head, const char **payload) {
    size_t left = link->in.size - *taken;
    if (left >= sizeof *head) memcpy(head, link->in.data + *taken, sizeof *head);
    if (left < sizeof *head || head->bytes > MOST_PAYLOAD || left - sizeof *head < head->bytes) {
        if (left) memmove(link->in.data, link->in.data + *taken, left);
        link->in.size = left;
        return false;
    }
    *payload = link->in.data + *taken + sizeof *head;
    *taken += sizeof *head + head->bytes;
    return true;
}

void watch_link_close(WatchLink *link) {
    if (link->socket >= 0) close(link->socket);
    link->socket = -1;
    buffer_free(&link->in);
}
