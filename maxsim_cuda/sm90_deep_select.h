// Tile shape and instantiation of the Hopper forward for long rows, one file for each dtype.
#pragma once

#include <cuda_runtime_api.h>

#include "../maxsim_common/problem.h"

namespace maxsim {
namespace cuda {

struct ForwardArgs;

// Both sides of one type. What no tensor map describes of 16-bit features runs on mma.sync then, which adds the same
// products in the same order, to the same bits.
inline bool sm90_takes_deep(const Problem& problem) {
  const DType type = problem.queries.dtype;
  const bool whole = (type == DType::f16 || type == DType::bf16) && !problem.normalize;
  return problem.queries.dim > 128 && problem.documents.dtype == type && (whole || type == DType::f32);
}

void sm90_select_deep_bf16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_deep_split(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_deep_f16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_deep(const ForwardArgs& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
