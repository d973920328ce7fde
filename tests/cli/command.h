/* Runs the program as a user does, in a folder, and keeps what it said. */
#pragma once
#include "base/json.h"
#include "tests/support/test.h"
#include <sys/types.h>

typedef struct Answer {
    int status; // exit status; 128 + the signal that ended it
    Buffer out, err;
} Answer; // end with answer_free

// words: the command line behind "bifocal", NULL at the end. input: on stdin; NULL: nothing.
Answer command_run(const char *folder, const char *input, const char *const *words);
void answer_free(Answer *);
// Started and left to run, its output thrown away; command_end waits for it.
pid_t command_start(const char *folder, const char *const *words);
int command_end(pid_t); // exit status; 128 + the signal that ended it

// Whether `bifocal launch` can start several processes here. Commands from then on may leak: what MPI keeps at its end is
// none of ours.
bool command_can_launch(void);

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})
// Runs, and fails with what it said where the exit status is another one.
#define assert_status(expected, folder, ...)                                                                           \
    assert_status_at(expected, folder, NULL, NULL, NULL, WORDS(__VA_ARGS__), __FILE__, __LINE__)
// And where it did not print `part` on stdout; nothing may be on stdout where the status is not 0.
#define assert_prints(part, folder, ...)                                                                               \
    assert_status_at(0, folder, NULL, part, NULL, WORDS(__VA_ARGS__), __FILE__, __LINE__)
// And where it is not refused with `part` in the message on stderr.
#define assert_refuses(expected, part, folder, ...)                                                                    \
    assert_status_at(expected, folder, NULL, NULL, part, WORDS(__VA_ARGS__), __FILE__, __LINE__)
void assert_status_at(int expected, const char *folder, const char *input, const char *out_part, const char *err_part,
                      const char *const *words, const char *file, int line);

// What it prints, where that is one JSON value and the exit status is `expected`; the caller frees it.
json_t *command_json(int expected, const char *folder, const char *const *words);
