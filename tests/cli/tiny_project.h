/* A folder as a user has it after the first three commands, made by them: raw/ (scenes), data/ and text/ (datasets),
 * words.model, and config.yaml of a very small model on all four objectives. */
#pragma once

char *tiny_project_new(void); // the folder; end with temporary_free
