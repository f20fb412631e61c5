// Tile shape and instantiation of the Hopper forward, one file for each dtype so that they compile side by side.
#pragma once

#include <cuda_runtime_api.h>

#include "../maxsim_common/problem.h"

namespace maxsim {
namespace cuda {

struct ForwardArgs;

// Both sides of a stored dtype that the tensor cores multiply as it is, in rows of 128 bytes.
inline bool sm90_takes_stored(const Problem& problem) {
  const DType query = problem.queries.dtype, document = problem.documents.dtype;
  const bool multiplied = query == DType::e4m3 || query == DType::e5m2 || query == DType::s8;
  return query == document && multiplied && problem.queries.dim <= 128;
}

// Stored documents whose values the queries' type holds: they are widened to it, whole, and multiplied once. Unsigned
// ones lose their centre on the way, which their minimum makes up for; without one they are split as other mixtures
// are.
inline bool sm90_takes_widened(const Problem& problem) {
  const Segments &queries = problem.queries, &documents = problem.documents;
  const bool minimum = static_cast<bool>(documents.minimum), scale = static_cast<bool>(documents.scale);
  return (queries.dtype == DType::f16 || queries.dtype == DType::bf16) && is_stored(documents.dtype) &&
         queries.dim <= 128 && !problem.normalize && (minimum ? scale : documents.dtype != DType::u8);
}

// Everything whose rows fit in shared memory: what is not multiplied as it is, is split. Decided by d alone, so that a
// pair takes the same path in every layout.
inline bool sm90_takes(const Problem& problem) { return problem.queries.dim <= 128; }

void sm90_select_bf16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_f16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_e4m3(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_e5m2(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_s8(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_widened_f16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_widened_bf16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_turned_f16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_turned_bf16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_loose_f16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_loose_bf16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_split(const ForwardArgs& args, cudaStream_t stream);
void sm90_select(const ForwardArgs& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
