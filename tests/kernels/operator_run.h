/* One run of an operator's example, brought to the host as doubles, and its gradients by differences of the reference:
 * what the tests over the list of operators are made of. */
#pragma once
#include "kernels/example.h"
#include "tests/kernels/reference.h"

typedef struct Choice { // which example
    const Operator *op;
    Dtype dtype;
    int variant;
    uint64_t seed;
} Choice;

typedef struct Values {
    double *value; // NULL: there are none
    int64_t count;
} Values;

typedef struct Run {
    Choice choice;
    Tape *tape;
    Arena *memory; // of all values
    Node *call;
    Values in[MAX_INPUTS], out;
    Values cotangent;            // the gradient of the output that backward starts from
    Values gradient[MAX_INPUTS]; // of inputs that want one
} Run;

int run_variants(Tape *, const Operator *); // how many cases its example has
// Resets the tape and runs the example forward; aborts with the tape's message where that fails.
Run run_forward(Arena *, Tape *, Choice);
// Backwards from the cotangent, in one call or in two halves; reads the gradients.
void run_backward(Run *, bool in_halves);
void run_backward_half(Run *, Halves); // one half, or all; the gradients are read after the half of the weights
void run_backward_from(Run *, double everywhere); // the same with a cotangent that is one number
// Puts values into the gradient of each input that wants one, as an earlier user of it would have.
void run_preset_gradients(Run *, Values preset[MAX_INPUTS]);
void run_read_output(Run *);
// Sets one element of an input, on the device and in `in`, and runs the forward kernel again.
void run_with_element(Run *, int input, int64_t element, double value);

Values run_read(Arena *, Backend *, const void *data, Dtype, int64_t count);
// The reference's output for the run's inputs.
Values run_reference(const Run *);
// d loss / d in[input][element] and the derivative along `direction` (or NULL), loss = cotangent . reference
double run_difference(const Run *, int input, int64_t element, const double *direction);
