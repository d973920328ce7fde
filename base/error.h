/* Errors as values: what went wrong, where, and what to do about it.
 *
 * A function that can fail on bad input returns false (or NULL) and fills the caller's Error, which is never NULL.
 * Messages name the file, the place in it and the remedy. Callers that know more put it in front (error_prefix).
 * Programmer errors and broken invariants abort with condition, file and line (check). Libraries never call exit. */
#pragma once
#include <stdbool.h>

typedef enum {
    ERROR_NONE = 0,
    ERROR_FAILED = 1, // the work failed or found damage (exit status 1)
    ERROR_USAGE = 2,  // wrong usage or configuration (exit status 2)
} ErrorKind;

typedef struct Error {
    ErrorKind kind;
    char      message[1020]; // UTF-8, no newline at the end; cut at a character where longer
} Error;

#if defined(__GNUC__)
#define PRINTF_LIKE(at, first) __attribute__((format(printf, at, first)))
#else
#define PRINTF_LIKE(at, first)
#endif

// Fills `error` and returns false, so that `return error_set(...)` reads well. Overwrites what was there.
bool error_set(Error *error, ErrorKind kind, const char *format, ...) PRINTF_LIKE(3, 4);
// As error_set, with ": " and the text of `errno` at the end.
bool error_set_errno(Error *error, ErrorKind kind, const char *format, ...) PRINTF_LIKE(3, 4);
// Puts "<text>: " in front of the message. Returns false.
bool error_prefix(Error *error, const char *format, ...) PRINTF_LIKE(2, 3);

#ifdef __clang_analyzer__ // it sees one file at a time: tell it what these return
#define error_set(...)       (error_set(__VA_ARGS__), false)
#define error_set_errno(...) (error_set_errno(__VA_ARGS__), false)
#define error_prefix(...)    (error_prefix(__VA_ARGS__), false)
#endif

__attribute__((noreturn)) void check_failed(const char *condition, const char *file, int line);
// What must hold whatever the input: aborts with condition, file and line, in every build type.
#define check(condition) ((condition) ? (void)0 : check_failed(#condition, __FILE__, __LINE__))
