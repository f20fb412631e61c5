// The Hopper forward for e5m2 operands.
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_e5m2(const ForwardArgs& args, cudaStream_t stream) { select_stored<__nv_fp8_e5m2>(args, stream); }

}  // namespace cuda
}  // namespace maxsim
