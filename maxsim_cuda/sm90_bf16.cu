// The Hopper forward for bf16 operands.
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_bf16(const Sm90Args& args, int sms, cudaStream_t stream) {
  select_dim<__nv_bfloat16>(args, sms, stream);
}

}  // namespace cuda
}  // namespace maxsim
