// The Hopper forward for f16 operands.
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_f16(const Sm90Args& args, int sms, cudaStream_t stream) { select_dim<__half>(args, sms, stream); }

}  // namespace cuda
}  // namespace maxsim
