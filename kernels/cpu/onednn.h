/* Matrix products by oneDNN, behind the same description as our own: the peer that `bifocal bench ops` measures against,
 * and a choice (BIFOCAL_MATMUL=onednn) for machines that it knows better. Its sums may differ in bits from one number of
 * threads to another, which ours do not. */
#pragma once
#include "kernels/matmul.h"

typedef struct Onednn Onednn; // compiled products by shape; not thread-safe

Onednn     *onednn_new(int threads);                // NULL where the program was built without oneDNN
void        onednn_free(Onednn *);                  // NULL is allowed
bool        onednn_matmul(Onednn *, const Matmul *); // false: it cannot do this one on this machine, C is untouched
const char *onednn_version(const Onednn *);          // "2.6.3"
