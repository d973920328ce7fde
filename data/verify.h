/* dataset_verify with the findings as a list. */
#pragma once
#include "base/log.h"
#include <jansson.h>

// As dataset_verify; each finding is also appended to `list`, an array of strings (NULL: not wanted).
int64_t dataset_verify_list(const char *path, json_t *list, Log *, Error *);
