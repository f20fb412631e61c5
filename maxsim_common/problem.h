// One description of every MaxSim call: query segments, document segments, and which of them meet.
// Plain data, no torch: the binding fills it in place and every backend's launcher reads it.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MAXSIM_INLINE __host__ __device__ __forceinline__
#else
#define MAXSIM_INLINE inline
#endif

namespace maxsim {

// Behind the floats come what documents are stored as: eight-bit floats (OCP OFP8), integers, and signs, eight features
// to a byte with the first in the lowest bit, where 1 stands for 1 and 0 for -1.
enum class DType : int32_t { f32 = 0, f16 = 1, bf16 = 2, e4m3 = 3, e5m2 = 4, s8 = 5, u8 = 6, bit = 7 };

MAXSIM_INLINE constexpr bool is_stored(DType t) { return static_cast<int32_t>(t) > static_cast<int32_t>(DType::bf16); }

// Bytes of an element, which is eight features of `bit` and one of anything else.
MAXSIM_INLINE int64_t element_size(DType t) { return t == DType::f32 ? 4 : is_stored(t) ? 1 : 2; }

// a / b for 0 <= a, 0 < b: a 64-bit division costs a GPU some hundred cycles, and nearly all values fit in 32 bits.
MAXSIM_INLINE int64_t quotient(int64_t a, int64_t b) {
  if (b == 1) return a;
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// int32 or int64 values as offsets, lengths and ids arrive from Python; `at` counts elements, `[]` counts strides.
struct IndexView {
  const void* data = nullptr;
  int64_t stride = 1;
  bool wide = false;

  MAXSIM_INLINE explicit operator bool() const { return data != nullptr; }
  MAXSIM_INLINE int64_t at(int64_t element) const {
    return wide ? static_cast<const int64_t*>(data)[element] : static_cast<const int32_t*>(data)[element];
  }
  MAXSIM_INLINE int64_t operator[](int64_t i) const { return at(i * stride); }
};

// A two-level stride: segment s of a padded side lies at (s / inner, s % inner).
struct SegmentStride {
  int64_t outer = 0;
  int64_t inner = 0;
};

// What the values of tokens are multiplied by, or what is added to them then: one for each `block` neighbours.
struct TokenFactor {
  const float* data = nullptr;
  int64_t block = 1;
  int64_t block_stride = 0;
  SegmentStride segment_stride;  // padded only

  MAXSIM_INLINE explicit operator bool() const { return data != nullptr; }
};

// One side of the problem: token rows grouped into segments. All strides count elements.
struct Segments {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t dim = 0;
  int64_t count = 0;   // segments
  int64_t extent = 0;  // padded: rows of every segment; packed: rows of the whole view
  int64_t inner = 1;   // documents per query of an own-slab layout, else 1
  int64_t token_stride = 0;
  int64_t feature_stride = 1;
  SegmentStride segment_stride;  // padded only
  IndexView offsets;             // packed only: segment s is rows [offsets[s], offsets[s + 1])
  IndexView lengths;             // padded only: rows that count; null = all of them
  SegmentStride lengths_stride;
  const uint8_t* mask = nullptr;  // one byte per row, non-zero = keep; null = keep all
  int64_t mask_token_stride = 0;
  SegmentStride mask_stride;
  TokenFactor scale, minimum;  // null = 1 and 0; queries have no minimum

  MAXSIM_INLINE bool packed() const { return static_cast<bool>(offsets); }
  // Padded, with every token kept.
  MAXSIM_INLINE bool whole() const { return !offsets && !lengths && !mask; }
  MAXSIM_INLINE int64_t stride(const SegmentStride& by, int64_t s) const {
    const int64_t group = quotient(s, inner);
    return group * by.outer + (s - group * inner) * by.inner;
  }
  // Element offset of row 0, row count and mask offset, as stated: a caller that cannot trust the values clamps them.
  MAXSIM_INLINE int64_t begin(int64_t s) const {
    return offsets ? offsets[s] * token_stride : stride(segment_stride, s);
  }
  MAXSIM_INLINE int64_t length(int64_t s) const {
    if (offsets) return offsets[s + 1] - offsets[s];
    return lengths ? lengths.at(stride(lengths_stride, s)) : extent;
  }
  MAXSIM_INLINE int64_t mask_begin(int64_t s) const {
    return offsets ? offsets[s] * mask_token_stride : stride(mask_stride, s);
  }
  // Where the factors of segment s begin, and the one of a row: `row` counts from the first row of the packed view.
  MAXSIM_INLINE const float* factors(const TokenFactor& of, int64_t s) const {
    return of.data + (packed() ? 0 : stride(of.segment_stride, s));
  }
  MAXSIM_INLINE static const float& factor(const TokenFactor& of, const float* factors, int64_t row) {
    return factors[quotient(row, of.block) * of.block_stride];
  }
};

enum class Pairing : int32_t {
  cross,  // every query meets every document: scores [Nq, Nd]
  slab,   // query i meets its own `documents.inner` documents: scores [Nq, K]
  list,   // pair p is (query_ids[p], document_ids[p]): scores [P]
};

constexpr int64_t kNoArgmax = INT64_MIN;

struct Problem {
  Segments queries;
  Segments documents;
  Pairing pairing = Pairing::cross;
  IndexView query_ids;
  IndexView document_ids;
  int64_t pairs = 0;  // scores to write
  bool normalize = false;
  float empty_score = 0.f;
  int64_t argmax_width = kNoArgmax;   // int32 slots per pair
  int64_t longest_query = INT64_MAX;  // tokens that a packed query may have; CUDA scores a longer one NaN
};

// 1 / max(norm, eps) with torch.nn.functional.normalize's eps.
constexpr float kNormEps = 1e-12f;

}  // namespace maxsim
