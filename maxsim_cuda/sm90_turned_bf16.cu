// The Hopper forward for one short query of bf16 and stored integers.
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_turned_bf16(const ForwardArgs& args, cudaStream_t stream) {
  select_turned<__nv_bfloat16>(args, stream);
}

}  // namespace cuda
}  // namespace maxsim
