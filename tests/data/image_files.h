/* Reading pictures of the tests' folder. */
#pragma once
#include "data/image.h"
#include "tests/support/test.h"

#define IMAGES_FOLDER SOURCE_FOLDER "/tests/oracles/images/"

void read_bytes(const char *folder, const char *name, Buffer *out); // fails the test where it cannot
void read_picture(const char *folder, const char *name, Image *out);
// The most that a value of two pictures of one size differs; fails the test where sizes differ.
int pictures_differ(const Image *a, const Image *b, const char *name);
