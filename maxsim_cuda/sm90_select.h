// Tile shape and instantiation of the Hopper forward, one file for each dtype so that they compile side by side.
#pragma once

#include <cuda_runtime_api.h>

#include "../maxsim_common/problem.h"

namespace maxsim {
namespace cuda {

struct ForwardArgs;

// Both sides of the same dtype, one that the tensor cores multiply, d up to two swizzle atoms: decided by dtype and d
// alone, so that a pair takes the same path in every layout.
inline bool sm90_takes(const Problem& problem) {
  const DType type = problem.queries.dtype;
  const bool multiplied =
      type == DType::f16 || type == DType::bf16 || type == DType::e4m3 || type == DType::e5m2 || type == DType::s8;
  return type == problem.documents.dtype && multiplied && problem.queries.dim <= 128;
}

void sm90_select_bf16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_f16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_e4m3(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_e5m2(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_s8(const ForwardArgs& args, cudaStream_t stream);
void sm90_select(const ForwardArgs& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
