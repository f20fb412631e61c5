// The soft maximum on CUDA: sides are padded, pairs a cross product or own slabs. Both entries only enqueue work.
#pragma once

#include "launch.h"

namespace maxsim {
namespace cuda {

// Scratch memory in bytes. Throws where the layout is none of these.
int64_t soft_workspace(const Problem& problem, bool backward);

// parts [pairs, argmax_width], what each query token adds to a score, or null.
void soft_forward(const Problem& problem, Path path, double tau, float* scores, float* parts, void* workspace,
                  cudaStream_t stream);

// Gradients in the inputs' dtypes, contiguous and zeroed by the caller; null = not needed.
void soft_backward(const Problem& problem, Path path, double tau, const float* grad_scores, const float* parts,
                   void* grad_queries, void* grad_documents, void* workspace, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
