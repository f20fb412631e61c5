// A problem as the kernels see it: every offset, length and id is checked before it becomes an address.
#pragma once

#include <metal_stdlib>

#include "params.h"

// NaN, infinities and the two halves of a sum need the arithmetic as written.
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)

namespace maxsim {
namespace metal_backend {

using namespace metal;

constant constexpr int32_t kMostTokens =
    0x7fffff00;  // of one segment: counting on to the end of a step stays in 32 bits

// Rows of one segment that lie inside the tensor; `valid` is 0 where the stated ones did not.
struct Span {
  int64_t begin;       // element offset of row 0
  int64_t mask_begin;  // mask offset of row 0
  int64_t first_row;   // row number in the packed view, or in the padded tensor's token order
  int32_t length;
  int32_t valid;
};

// 64-bit divisions are slow, and nearly all values fit in 32 bits. For 0 <= a, 0 < b.
inline int64_t quotient(int64_t a, int64_t b) {
  if (b == 1) return a;
  if (((a | b) >> 32) == 0) return uint(a) / uint(b);
  return a / b;
}

inline int64_t load_index(device const uchar* data, int32_t wide, int64_t element) {
  return wide ? ((device const int64_t*)data)[element] : int64_t(((device const int32_t*)data)[element]);
}

inline Span span_of(constant SideParams& side, device const uchar* extents, int64_t segment) {
  Span span = {0, 0, 0, 0, 0};
  if (segment < 0 || segment >= side.count) return span;
  if (side.packed) {
    const int64_t from = load_index(extents, side.wide_extents, segment * side.extents_stride);
    const int64_t to = load_index(extents, side.wide_extents, (segment + 1) * side.extents_stride);
    if (from < 0 || from > to || to > side.extent || to - from > kMostTokens) return span;
    span.first_row = from;
    span.length = int32_t(to - from);
    span.begin = from * side.token_stride;
    span.mask_begin = from * side.mask_token_stride;
  } else {
    const int64_t outer = quotient(segment, side.inner), inner = segment - outer * side.inner;
    int64_t length = side.extent;
    if (side.has_lengths)
      length = load_index(extents, side.wide_extents, outer * side.extents_stride + inner * side.extents_inner_stride);
    if (length < 0 || length > side.extent || length > kMostTokens) return span;
    span.first_row = segment * side.extent;
    span.length = int32_t(length);
    span.begin = outer * side.outer_stride + inner * side.inner_stride;
    span.mask_begin = outer * side.mask_outer_stride + inner * side.mask_inner_stride;
  }
  span.valid = 1;
  return span;
}

struct PairIds {
  int64_t query;
  int64_t document;
};

inline PairIds pair_ids(constant ProblemParams& problem, device const uchar* query_ids,
                        device const uchar* document_ids, int64_t pair) {
  PairIds ids = {0, pair};
  if (problem.meeting == Meeting::cross) {
    ids.query = quotient(pair, problem.documents.count);
    ids.document = pair - ids.query * problem.documents.count;
  } else if (problem.meeting == Meeting::slab) {
    ids.query = quotient(pair, problem.documents.inner);
  } else {
    ids.query = load_index(query_ids, problem.wide_query_ids, pair * problem.query_ids_stride);
    ids.document = load_index(document_ids, problem.wide_document_ids, pair * problem.document_ids_stride);
  }
  return ids;
}

inline bool token_kept(constant SideParams& side, device const uchar* mask, int64_t mask_begin, int64_t token) {
  return !side.has_mask || mask[mask_begin + token * side.mask_token_stride] != 0;
}

inline float load_element(device const uchar* data, Element element, int64_t index) {
  switch (element) {
    case Element::f32:
      return ((device const float*)data)[index];
    case Element::f16:
      return float(((device const half*)data)[index]);
    default:
      return float(((device const bfloat*)data)[index]);
  }
}

inline void store_element(device uchar* data, Element element, int64_t index, float value) {
  switch (element) {
    case Element::f32:
      ((device float*)data)[index] = value;
      break;
    case Element::f16:
      ((device half*)data)[index] = half(value);
      break;
    default:
      ((device bfloat*)data)[index] = bfloat(value);
  }
}

constant constexpr float kNormEps = 1e-12f;  // torch.nn.functional.normalize's

inline float inverse_norm(float square) {
  const float norm = precise::sqrt(square);
  return 1.0f / (norm < kNormEps ? kNormEps : norm);
}

// The best document token so far of one query token; index -1 where there is none. torch.max's order: NaN above
// everything, then the value, then the lower index.
struct Best {
  float value;
  int32_t index;
};

inline bool beats(Best a, Best b) {
  if (a.index < 0 || b.index < 0) return b.index < 0 && a.index >= 0;
  const bool a_nan = isnan(a.value), b_nan = isnan(b.value);
  if (a_nan != b_nan) return a_nan;
  if (!a_nan && a.value != b.value) return a.value > b.value;
  return a.index < b.index;
}

// A sum kept in two floats, as Metal has no double: the error of every addition (Knuth's two-sum) goes into `low`.
// Adding a zero changes nothing, so that a masked query token leaves every bit of a score.
struct Sum {
  float high;
  float low;
};

inline Sum add(Sum sum, float value) {
  const float high = sum.high + value;
  const float part = high - sum.high;
  const float error = (sum.high - (high - part)) + (value - part);
  Sum result = {high, sum.low + error};
  return result;
}

inline float rounded(Sum sum) { return isfinite(sum.high) ? sum.high + sum.low : sum.high; }

}  // namespace metal_backend
}  // namespace maxsim
