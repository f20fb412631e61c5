// Tile shape and instantiation of the Hopper forward, one file for each dtype so that they compile side by side.
#pragma once

#include <cuda_runtime_api.h>

#include "../maxsim_common/problem.h"

namespace maxsim {
namespace cuda {

struct ForwardArgs;

// Any floats, or both sides of the same stored dtype that the tensor cores multiply, and rows that fit in shared
// memory: decided by dtype and d alone, so that a pair takes the same path in every layout.
inline bool sm90_takes(const Problem& problem) {
  const DType query = problem.queries.dtype, document = problem.documents.dtype;
  const bool floats = !is_stored(query) && !is_stored(document);
  const bool multiplied = query == DType::e4m3 || query == DType::e5m2 || query == DType::s8;
  return (floats || (query == document && multiplied)) && problem.queries.dim <= 128;
}

void sm90_select_bf16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_f16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_e4m3(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_e5m2(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_s8(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_split(const ForwardArgs& args, cudaStream_t stream);
void sm90_select(const ForwardArgs& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
