// The Hopper forward for e4m3 operands.
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_e4m3(const ForwardArgs& args, cudaStream_t stream) { select_stored<__nv_fp8_e4m3>(args, stream); }

}  // namespace cuda
}  // namespace maxsim
