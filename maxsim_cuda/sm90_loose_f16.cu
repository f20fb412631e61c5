// The Hopper forward for f16 rows that begin anywhere.
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_loose_f16(const ForwardArgs& args, cudaStream_t stream) { select_loose<__half>(args, stream); }

}  // namespace cuda
}  // namespace maxsim
