/* See reference.h. */
#include "tests/kernels/reference.h"
#include <string.h>

ReferenceFunction *reference_of(const Operator *op) {
#define RETURN_REFERENCE(operator_name)                                                                                \
    if (!strcmp(op->name, #operator_name)) return reference_##operator_name;
    OPERATORS(RETURN_REFERENCE)
#undef RETURN_REFERENCE
    return NULL;
}
