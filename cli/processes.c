/* See processes.h. */
#include "cli/processes.h"
#include "base/clock.h"
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LEAVE_SECONDS = 5, LOST_SECONDS = 10, POLL_MILLISECONDS = 50 };

static sigset_t passed_on(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGCHLD);
    return set;
}

void processes_prepare(void) {
    sigset_t set = passed_on();
    sigprocmask(SIG_BLOCK, &set, NULL);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
}

static pid_t start(const char *const *line, Error *error) {
    pid_t parent = getpid(), child = fork();
    if (child < 0) error_set_errno(error, ERROR_FAILED, "cannot start %s", line[0]);
    if (child) return child;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setpgid(0, 0); // ^C on a terminal is for the launcher, which passes it on
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    int nothing = open("/dev/null", O_RDONLY);
    if (getppid() == parent && nothing >= 0 && dup2(nothing, STDIN_FILENO) >= 0) execv(line[0], (char *const *)line);
    perror(line[0]);
    _exit(127);
}

static int exit_status(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

// Whether `child` has ended; reaps others that came to us.
static bool reap(pid_t child, int *status) {
    int one;
    for (pid_t ended; (ended = waitpid(-1, &one, WNOHANG)) > 0;)
        if (ended == child) {
            *status = exit_status(one);
            return true;
        }
    return false;
}

// Calls `take` for each child of a process, until it returns true; whether it did.
static bool any_child(pid_t parent, bool (*take)(pid_t child, const void *context), const void *context) {
    char path[300];
    bool taken = false;
    snprintf(path, sizeof path, "/proc/%d/task", parent);
    DIR *threads = opendir(path);
    for (const struct dirent *thread; threads && (thread = readdir(threads));) {
        snprintf(path, sizeof path, "/proc/%d/task/%s/children", parent, thread->d_name);
        FILE *list = thread->d_name[0] != '.' ? fopen(path, "re") : NULL;
        for (int child; list && !taken && fscanf(list, "%d", &child) == 1;) taken = take(child, context);
        if (list) fclose(list);
    }
    if (threads) closedir(threads);
    return taken;
}

static bool end_child(pid_t child, const void *context) {
    (void)context;
    kill(child, SIGKILL);
    return false;
}

static bool runs_file(pid_t child, const void *file) {
    char path[64], own[4096];
    snprintf(path, sizeof path, "/proc/%d/exe", child);
    ssize_t n = readlink(path, own, sizeof own - 1);
    own[n > 0 ? n : 0] = 0;
    return !strcmp(own, file);
}

// Ranks whose mpirun was killed notice and end; what does not is ended.
static void end_orphans(void) {
    const struct timespec pause = {.tv_nsec = POLL_MILLISECONDS * 1000000};
    for (int waited = 0;; waited += POLL_MILLISECONDS) {
        pid_t ended = waitpid(-1, NULL, WNOHANG);
        if (ended < 0) return; // no children left
        if (ended > 0) continue;
        if (waited >= LEAVE_SECONDS * 1000) any_child(getpid(), end_child, NULL);
        nanosleep(&pause, NULL);
    }
}

// Once a second. seen: clock_seconds() when the command last had a worker here; 0: never.
static void end_if_lost(pid_t child, const char *worker, double *seen) {
    double now = clock_seconds();
    if (any_child(child, runs_file, worker))
        *seen = now;
    else if (*seen > 0 && now - *seen > LOST_SECONDS)
        kill(child, now - *seen > LOST_SECONDS + LEAVE_SECONDS ? SIGKILL : SIGTERM);
}

int processes_run(const char *const *line, const char *worker, bool *asked, Error *error) {
    const struct timespec second = {.tv_sec = 1};
    int status = -1, first = 0;
    double seen = 0;
    sigset_t set = passed_on();
    pid_t child = start(line, error);
    if (child < 0) return -1;
    while (!reap(child, &status)) {
        int number = sigtimedwait(&set, NULL, &second);
        if (worker) end_if_lost(child, worker, &seen);
        if (number <= 0 || number == SIGCHLD) continue;
        kill(child, first ? SIGTERM : SIGUSR1);
        if (!first) first = number;
    }
    end_orphans();
    *asked = first != 0;
    return first && status == 128 + SIGUSR1 ? 128 + first : status;
}
