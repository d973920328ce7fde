/* Graphs of cuDNN's backend interface, as far as attention needs them: tensors, products, pointwise operations, sums and
 * maxima over the last dimension, transposes. cuDNN is opened at run time, since the module must load without it.
 * A call that fails leaves the graph without a plan; nothing else comes of it. */
#pragma once
#include "base/log.h"
#include "kernels/cuda/kernels.h"
#include <cudnn_graph.h>

typedef struct Cudnn Cudnn;
typedef struct CudnnGraph CudnnGraph;
typedef struct CudnnPlan CudnnPlan;
typedef cudnnBackendDescriptor_t CudnnTensor;

Cudnn *cudnn_open(CudaStream, Log *); // NULL where it is not there or does not start; the log is told why
void cudnn_close(Cudnn *);            // NULL is allowed
size_t cudnn_version(const Cudnn *);

CudnnGraph *cudnn_graph_new(Cudnn *);
void cudnn_graph_free(CudnnGraph *); // NULL is allowed
// A tensor of the caller's, (4 dimensions), 16-byte aligned. name: by which its memory is given when the plan runs.
CudnnTensor cudnn_tensor(CudnnGraph *, int64_t name, cudnnDataType_t, const int64_t *dim, const int64_t *stride);
CudnnTensor cudnn_value(CudnnGraph *, int64_t name); // one f32 number, given as a pointer to it
// What an operation makes, never stored: dense, (4); transposed: as if its last two dimensions had been swapped in memory.
CudnnTensor cudnn_between(CudnnGraph *, cudnnDataType_t, const int64_t *dim, bool transposed);
CudnnTensor cudnn_between_at(CudnnGraph *, cudnnDataType_t, const int64_t *dim, const int64_t *stride);
CudnnTensor cudnn_matmul(CudnnGraph *, CudnnTensor a, CudnnTensor b, CudnnTensor out);
// b, t: NULL where the mode takes none; axis: of CUDNN_POINTWISE_GEN_INDEX
CudnnTensor cudnn_pointwise(CudnnGraph *, cudnnPointwiseMode_t, CudnnTensor x, CudnnTensor b, CudnnTensor t, CudnnTensor out,
                            int64_t axis);
CudnnTensor cudnn_reduce(CudnnGraph *, cudnnReduceTensorOp_t, CudnnTensor x, CudnnTensor out);
CudnnTensor cudnn_reshape(CudnnGraph *, CudnnTensor x, CudnnTensor out);

// Up to `most` plans, best first: the library's proposals that compile; steady: none but those that give the same bits
// each time. The graph must outlive them; each is the caller's.
int cudnn_plans(CudnnGraph *, bool steady, size_t most_workspace, CudnnPlan **plans, int most);
void cudnn_plan_free(CudnnPlan *); // NULL is allowed
size_t cudnn_plan_workspace(const CudnnPlan *);
bool cudnn_plan_run(const CudnnPlan *, CudaStream, int count, const int64_t *names, void *const *memory, void *workspace);
