/* What every test program needs: cmocka with its includes, a folder of its own, and assertions on errors. */
#pragma once
#include "base/error.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

char *temporary_new(void);                                  // a new empty folder; end with temporary_free
void temporary_free(char *folder);                          // removes it with all in it, and frees the name
char *temporary_path(const char *folder, const char *name); // "folder/name"; the caller frees it

void temporary_write(const char *path, const void *bytes, size_t count); // not synced: quick where many are written

void assert_message_has(const Error *, const char *part); // fails and prints the message where `part` is not in it

// Fails with the message where `call` is false.
#define assert_done(call, error)                                                                                       \
    do {                                                                                                               \
        if (!(call)) fail_msg("%s: %s", #call, (error)->message);                                                      \
    } while (0)
