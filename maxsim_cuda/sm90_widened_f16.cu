// The Hopper forward for f16 queries and stored documents.
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_select_widened_f16(const ForwardArgs& args, cudaStream_t stream) { select_widened<__half>(args, stream); }

}  // namespace cuda
}  // namespace maxsim
