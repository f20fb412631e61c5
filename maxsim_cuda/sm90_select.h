// Tile shape and instantiation of the Hopper forward, one file for each dtype so that they compile side by side.
#pragma once

#include <cuda_runtime_api.h>

#include "../maxsim_common/problem.h"

namespace maxsim {
namespace cuda {

struct ForwardArgs;

// Both sides fp16 or both bf16, d up to two swizzle atoms: decided by dtype and d alone, so that a pair takes the same
// path in every layout.
inline bool sm90_takes(const Problem& problem) {
  return problem.queries.dtype == problem.documents.dtype && problem.queries.dtype != DType::f32 &&
         problem.queries.dim <= 128;
}

void sm90_select_bf16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_f16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select(const ForwardArgs& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
