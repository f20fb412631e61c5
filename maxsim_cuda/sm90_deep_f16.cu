// The Hopper forward for f16 rows of more than 128 features.
#include "sm90_deep_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_deep_f16(const ForwardArgs& args, cudaStream_t stream) { select_deep<__half>(args, stream); }

}  // namespace cuda
}  // namespace maxsim
