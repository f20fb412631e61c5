// The Hopper forward for bf16 operands.
#include "mma_select.h"
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_bf16(const ForwardArgs& args, cudaStream_t stream) { select_dim<__nv_bfloat16>(args, stream); }

void sm90_select(const ForwardArgs& args, cudaStream_t stream) {
  const bool f16 = args.problem.queries.dtype == DType::f16;
  if (sm90_takes_widened(args.problem)) {
    if (turned(args)) return f16 ? sm90_select_turned_f16(args, stream) : sm90_select_turned_bf16(args, stream);
    return f16 ? sm90_select_widened_f16(args, stream) : sm90_select_widened_bf16(args, stream);
  }
  if (!sm90_takes_stored(args.problem)) {
    if (mma_splits(args.problem)) return sm90_select_split(args, stream);
    if (loose(args.problem)) return f16 ? sm90_select_loose_f16(args, stream) : sm90_select_loose_bf16(args, stream);
  }
  switch (args.problem.queries.dtype) {
    case DType::bf16:
      return sm90_select_bf16(args, stream);
    case DType::e4m3:
      return sm90_select_e4m3(args, stream);
    case DType::e5m2:
      return sm90_select_e5m2(args, stream);
    case DType::s8:
      return sm90_select_s8(args, stream);
    default:
      return sm90_select_f16(args, stream);
  }
}

}  // namespace cuda
}  // namespace maxsim
