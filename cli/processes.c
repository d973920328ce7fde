/* See processes.h. */
#include "cli/processes.h"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LEAVE_SECONDS = 5, POLL_MILLISECONDS = 50 };

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

static void kill_children(void) {
    char path[64];
    int child;
    snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid());
    FILE *list = fopen(path, "re");
    if (!list) return;
    while (fscanf(list, "%d", &child) == 1) kill(child, SIGKILL);
    fclose(list);
}

// Ranks whose mpirun was killed notice and end; what does not is ended.
static void end_orphans(void) {
    const struct timespec pause = {.tv_nsec = POLL_MILLISECONDS * 1000000};
    for (int waited = 0;; waited += POLL_MILLISECONDS) {
        pid_t ended = waitpid(-1, NULL, WNOHANG);
        if (ended < 0) return; // no children left
        if (ended > 0) continue;
        if (waited >= LEAVE_SECONDS * 1000) kill_children();
        nanosleep(&pause, NULL);
    }
}

int processes_run(const char *const *line, bool *asked, Error *error) {
    int status = -1, first = 0;
    sigset_t set = passed_on();
    pid_t child = start(line, error);
    if (child < 0) return -1;
    while (!reap(child, &status)) {
        int number = sigwaitinfo(&set, NULL);
        if (number <= 0 || number == SIGCHLD) continue;
        kill(child, first ? SIGTERM : SIGUSR1);
        if (!first) first = number;
    }
    end_orphans();
    *asked = first != 0;
    return first && status == 128 + SIGUSR1 ? 128 + first : status;
}
