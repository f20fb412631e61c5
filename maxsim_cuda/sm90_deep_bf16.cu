// The Hopper forward for bf16 rows of more than 128 features.
#include "sm90_deep_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_deep_bf16(const ForwardArgs& args, cudaStream_t stream) { select_deep<__nv_bfloat16>(args, stream); }

void sm90_select_deep(const ForwardArgs& args, cudaStream_t stream) {
  if (mma_splits(args.problem)) return sm90_select_deep_split(args, stream);
  args.problem.queries.dtype == DType::f16 ? sm90_select_deep_f16(args, stream) : sm90_select_deep_bf16(args, stream);
}

}  // namespace cuda
}  // namespace maxsim
