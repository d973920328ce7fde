/* See batch.h. */
#include "data/batch.h"

const char *const objective_names[OBJECTIVES] = {"lm", "caption", "contrastive", "mae"};
