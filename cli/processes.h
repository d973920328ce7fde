/* A command and all that it starts, watched over: signals are passed on, and nothing outlives it. */
#pragma once
#include "base/error.h"

// Once, before the first processes_run: from now on signals wait for it, and processes whose parent died come to us.
void processes_prepare(void);
// Runs `line` (its file, its arguments, NULL) to its end, with nothing on stdin and in a process group of its own, and
// ends what it leaves behind. The first of SIGINT, SIGTERM, SIGHUP and SIGUSR1 becomes SIGUSR1 for the command, which
// asks it to save and leave; the second ends it. Where this process is killed, it is ended too.
// worker: the file of the processes that do the work, here and on other machines; when those that the command had here
// have been gone for some seconds, it has lost hold of the others, and is ended. NULL: it runs here alone.
// Its exit status, or 128 + the signal that ended it; 128 + the signal that was passed on, where it ended as it was
// asked. *asked: there was such a signal. -1 where it cannot be started.
int processes_run(const char *const *line, const char *worker, bool *asked, Error *);
