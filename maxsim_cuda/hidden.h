// Documents that are hidden states, projected on the way to their scores. Entries only enqueue work on `stream`.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../maxsim_common/problem.h"

namespace maxsim {
namespace cuda {

// Contiguous, 16-byte aligned; hidden states and weight in the same dtype, f16 or bf16.
struct Hidden {
  const void* tokens = nullptr;  // [documents, length, inputs]
  const void* weight = nullptr;  // [dim, inputs]
  const void* bias = nullptr;    // [dim], or null
  DType dtype = DType::bf16, bias_dtype = DType::bf16;
  int64_t documents = 0, length = 0, inputs = 0, dim = 0;
  bool normalize = false;
};

// Whether the current device and the kernel take features of these numbers, and as many rows.
bool hidden_takes(const Hidden& hidden);

// Query tokens that may stay in shared memory beside the ring.
constexpr int64_t kHiddenQueryRows = 128;

// Queries [count, length, dim] contiguous and aligned, of the hidden states' dtype; no more than kHiddenQueryRows
// tokens in all. `mask` [documents, length] may be null.
struct HiddenQueries {
  const void* tokens = nullptr;
  int64_t count = 0, length = 0;
};
struct HiddenMask {
  const uint8_t* data = nullptr;
  int64_t document_stride = 0, token_stride = 0;
};
int64_t hidden_workspace(const Hidden& hidden, const HiddenQueries& queries, bool with_argmax);
void hidden_forward(const Hidden& hidden, const HiddenQueries& queries, const HiddenMask& mask, float* scores,
                    int32_t* argmax, void* workspace, cudaStream_t stream);

// Projections [documents, length, dim], and 1 / max(norm, eps) of each token unless `factors` is null.
void hidden_project(const Hidden& hidden, void* projected, float* factors, cudaStream_t stream);

// Makes of the gradient of normalised projections that of what they were before, in place: [rows, dim] each, factors
// [rows]; `projected` null leaves it. `sum` [dim] of all rows may be null, and needs the workspace.
int64_t hidden_chain_workspace(int64_t rows, int64_t dim);
void hidden_chain(DType dtype, int64_t rows, int64_t dim, void* grad, const void* projected, const float* factors,
                  float* sum, void* workspace, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
