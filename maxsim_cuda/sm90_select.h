// Tile shape and instantiation of the Hopper forward, one file for each dtype so that they compile side by side.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace maxsim {
namespace cuda {

struct Sm90Args;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void sm90_select_bf16(const Sm90Args& args, int sms, cudaStream_t stream);
void sm90_select_f16(const Sm90Args& args, int sms, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
