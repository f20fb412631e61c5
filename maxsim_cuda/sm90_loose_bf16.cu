// The Hopper forward for bf16 rows that begin anywhere.
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_loose_bf16(const ForwardArgs& args, cudaStream_t stream) { select_loose<__nv_bfloat16>(args, stream); }

}  // namespace cuda
}  // namespace maxsim
