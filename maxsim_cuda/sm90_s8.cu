// The Hopper forward for int8 operands.
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_s8(const ForwardArgs& args, cudaStream_t stream) { select_stored<int8_t>(args, stream); }

}  // namespace cuda
}  // namespace maxsim
