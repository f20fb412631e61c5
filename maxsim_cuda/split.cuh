// Values as sums of two fp16 values: how fp32 and mixed operands are multiplied on tensor cores.
#pragma once

#include <type_traits>

#include "device_problem.cuh"

namespace maxsim {
namespace cuda {

// Two fp16 values hold 22 bits of an fp32 value, more than products of 11 bits add up to, as long as it is neither tiny
// nor huge. So a row is divided by its unit, a power of two that brings its largest value to [8, 16). Rows beyond
// kLargest, rows that are all tiny and rows that are not finite have no unit: NaN, which spoils the scores they take
// part in, and those are computed again without tensor cores.
// (Ootomo and Yokota, Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak
// performance, 2022.)
constexpr float kLargest = 0x1p60f, kSmallest = 0x1p-60f;

__device__ __forceinline__ float unit_of(float largest) {
  const float unit = __int_as_float((__float_as_int(largest) & 0x7f800000) - (3 << 23));
  const float none = largest == 0.f ? 0.f : __int_as_float(0x7fc00000);
  return largest >= kSmallest && largest <= kLargest ? unit : none;
}

// What multiplies a row to divide it by its unit: zero where there is none.
__device__ __forceinline__ float inverse_unit(float unit) {
  return unit > 0.f ? __int_as_float(0x7f000000 - __float_as_int(unit)) : 0.f;
}

// Two values of a row, as pairs of fp16. Those of a row without a unit are NaN or zero.
__device__ __forceinline__ void split_pair(float first, float second, float inverse, uint32_t& high, uint32_t& low) {
  const float x = first * inverse, y = second * inverse;
  const __half2 rounded = __floats2half2_rn(x, y);
  const float2 back = __half22float2(rounded);
  const __half2 rest = __floats2half2_rn(x - back.x, y - back.y);
  high = *reinterpret_cast<const uint32_t*>(&rounded);
  low = *reinterpret_cast<const uint32_t*>(&rest);
}

// Three products of halves, the small ones first: what the fourth would add is below the rounding of fp32. Where TF32
// will do, that of the high parts alone. multiply(query, document, adds): 1 for low parts, as constants.
template <class Multiply>
__device__ __forceinline__ void multiply_halves(bool allow_tf32, const Multiply& multiply) {
  const std::integral_constant<int, 0> high;
  const std::integral_constant<int, 1> low;
  if (!allow_tf32) {
    multiply(low, high, false);
    multiply(high, low, true);
  }
  multiply(high, high, !allow_tf32);
}

// Four neighbouring values of eight bits each, or of one: then in the lowest bits.
__device__ __forceinline__ void widen_stored(DType dtype, uint32_t raw, float* out) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const uint32_t byte = raw >> k * 8 & 0xff;
    switch (dtype) {
      case DType::e4m3:
      case DType::e5m2:
        out[k] = __half2float(__nv_cvt_fp8_to_halfraw(byte, dtype == DType::e4m3 ? __NV_E4M3 : __NV_E5M2));
        break;
      case DType::s8:
        out[k] = static_cast<int8_t>(byte);
        break;
      case DType::u8:
        out[k] = static_cast<float>(byte);
        break;
      default:
        out[k] = raw >> k & 1 ? 1.f : -1.f;
    }
  }
}

// Four neighbouring 16-bit values.
__device__ __forceinline__ void widen(DType dtype, const uint2& raw, float* out) {
  const uint32_t words[2] = {raw.x, raw.y};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const unsigned short bits = static_cast<unsigned short>(words[k / 2] >> (k % 2 * 16));
    out[k] = dtype == DType::f16 ? __half2float(__ushort_as_half(bits)) : __uint_as_float(uint32_t{bits} << 16);
  }
}

}  // namespace cuda
}  // namespace maxsim
