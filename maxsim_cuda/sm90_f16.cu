// The Hopper forward for f16 operands.
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_f16(const ForwardArgs& args, cudaStream_t stream) { select_dim<__half>(args, stream); }

}  // namespace cuda
}  // namespace maxsim
