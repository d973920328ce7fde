/* See watch_link.h. */
#include "kernels/comm/watch_link.h"
#include <errno.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST_WAITING = 1 << 16, SEND_BUFFER = 1 << 18, MOST_PAYLOAD = 1 << 20 };

void watch_link_settle(int socket) {
    int size = SEND_BUFFER;
    setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
}

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
