// Documents that are still hidden states: what the kernel that projects them is told, and how it keeps maxima.
#pragma once

#include "device_problem.cuh"

namespace maxsim {
namespace cuda {

struct HiddenArgs {
  int32_t rows;    // tokens of all documents; at least one
  int32_t length;  // tokens of a document
  int32_t inputs;  // features of a hidden state
  int32_t dim;     // features of a projected token
  const void* bias;
  DType bias_dtype;
  bool normalize;
  // Scored: maxima [documents][query_rows], zero at launch.
  const uint8_t* mask;  // of documents; null = all are kept
  int64_t mask_document_stride, mask_token_stride;
  int32_t query_rows;
  void* maxima;
  // Written: [rows][dim], and what normalised each row unless null.
  void* projected;
  float* factors;
};

// A maximum as an integer of the same order, NaN above everything, that is never zero: atomic maxima of unsigned
// integers need no order of arrival. With a winner, the lowest token is the greatest among equals.
template <bool kArgmax>
struct MaximumKey;

template <>
struct MaximumKey<false> {
  using Type = uint32_t;
  static __device__ __forceinline__ Type of(float value, int32_t) {
    // One zero and one NaN, whatever their signs.
    const int32_t bits = __float_as_int(value + 0.f);
    return static_cast<uint32_t>(bits) ^ (static_cast<uint32_t>(bits >> 31) | 0x80000000u);
  }
  static __device__ __forceinline__ float value(Type key) {
    return __int_as_float(static_cast<int32_t>(key & 0x80000000u ? key ^ 0x80000000u : ~key));
  }
};

template <>
struct MaximumKey<true> {
  using Type = unsigned long long;
  static __device__ __forceinline__ Type of(float value, int32_t token) {
    return static_cast<Type>(MaximumKey<false>::of(value, 0)) << 32 | ~static_cast<uint32_t>(token);
  }
  static __device__ __forceinline__ float value(Type key) { return MaximumKey<false>::value(key >> 32); }
  static __device__ __forceinline__ int32_t token(Type key) {
    return static_cast<int32_t>(~static_cast<uint32_t>(key));
  }
};

}  // namespace cuda
}  // namespace maxsim
