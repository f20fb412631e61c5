// The Hopper forward for bf16 queries and stored documents.
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_widened_bf16(const ForwardArgs& args, cudaStream_t stream) {
  select_widened<__nv_bfloat16>(args, stream);
}

}  // namespace cuda
}  // namespace maxsim
