/* The acts of `bifocal data`, one file each where they are long. argv[0] is the act's word; each returns false with the
 * error, whose kind is the exit status. */
#pragma once
#include "base/error.h"
#include "base/log.h"

typedef enum { DATA_HELP, DATA_DONE, DATA_FAILED } DataOutcome; // HELP: it was asked for; the usage was printed

DataOutcome data_build_main(int argc, char **argv, Log *, Error *);
DataOutcome data_synth_main(int argc, char **argv, Log *, Error *);
DataOutcome data_ls_main(int argc, char **argv, Log *, Error *);
DataOutcome data_verify_main(int argc, char **argv, Log *, Error *);

// A whole number from `least` to `most`; a size may end in K, M or G (powers of 1024).
bool data_number(const char *text, long long least, long long most, const char *option, long long *value, Error *);
bool data_size(const char *text, const char *option, long long *value, Error *);
