/* The list of all operators: see operator.h. */
#include "kernels/operator.h"
#include <string.h>

#define OPERATOR_ADDRESS(name) &op_##name,
const Operator *const operator_list[] = {OPERATORS(OPERATOR_ADDRESS) NULL};
#undef OPERATOR_ADDRESS

const Operator *operator_find(const char *name) {
    for (const Operator *const *op = operator_list; *op; op++)
        if (!strcmp((*op)->name, name)) return *op;
    return NULL;
}
