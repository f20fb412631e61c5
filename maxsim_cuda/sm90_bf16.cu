// The Hopper forward for bf16 operands.
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_bf16(const ForwardArgs& args, cudaStream_t stream) { select_dim<__nv_bfloat16>(args, stream); }

void sm90_select(const ForwardArgs& args, cudaStream_t stream) {
  args.problem.queries.dtype == DType::bf16 ? sm90_select_bf16(args, stream) : sm90_select_f16(args, stream);
}

}  // namespace cuda
}  // namespace maxsim
