/* A folder as a user has it after the first three commands, made by them: raw/ (scenes), data/ and text/ (datasets),
 * words.model, and config.yaml of a very small model on all four objectives. */
#pragma once

char *tiny_project_new(void); // the folder; end with temporary_free
// The one of all tests of a program: cmocka_run_group_tests(tests, open_project, close_project).
extern char *project;
int open_project(void **state);
int close_project(void **state);
