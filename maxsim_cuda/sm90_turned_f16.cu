// The Hopper forward for one short query of f16 and stored integers.
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_turned_f16(const ForwardArgs& args, cudaStream_t stream) { select_turned<__half>(args, stream); }

}  // namespace cuda
}  // namespace maxsim
