/* See backend.h. */
#include "kernels/backend.h"

void backend_free(Backend *b) {
    if (b) b->destroy(b);
}
