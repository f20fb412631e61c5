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

// An eight-bit float (OCP OFP8) bit by bit, so that subnormals and infinities do not depend on the hardware's ways.
inline float decode_e4m3(uint byte) {
  const uint exponent = byte >> 3 & 15, mantissa = byte & 7;
  float value = float(mantissa) * 0.001953125f;
  if (exponent) value = as_type<float>((exponent + 120) << 23 | mantissa << 20);
  if ((byte & 127) == 127) value = NAN;
  return byte >> 7 ? -value : value;
}

inline float decode_e5m2(uint byte) {
  const uint exponent = byte >> 2 & 31, mantissa = byte & 3;
  float value = float(mantissa) * 0.0000152587890625f;
  if (exponent) value = as_type<float>((exponent + 112) << 23 | mantissa << 21);
  if (exponent == 31) value = mantissa ? NAN : INFINITY;
  return byte >> 7 ? -value : value;
}

inline float decode_byte(Element element, uchar byte) {
  switch (element) {
    case Element::e4m3:
      return decode_e4m3(byte);
    case Element::e5m2:
      return decode_e5m2(byte);
    case Element::s8:
      return float(int8_t(byte));
    default:
      return float(byte);
  }
}

// Feature k of the row that begins at `row_begin`, of tokens that may be stored in a byte or a bit a feature.
inline float load_stored(device const uchar* data, constant SideParams& side, int64_t row_begin, int64_t k) {
  const bool bits = side.element == Element::bit;
  const int64_t index = row_begin + (bits ? k >> 3 : k) * side.feature_stride;
  if (bits) return data[index] >> (k & 7) & 1 ? 1.0f : -1.0f;
  if (int32_t(side.element) < int32_t(Element::e4m3)) return load_element(data, side.element, index);
  return decode_byte(side.element, data[index]);
}

// What a token's values are multiplied by, or what is added to them.
inline float load_factor(device const float* data, constant FactorParams& factor, constant SideParams& side,
                         int64_t segment, int64_t first_row, int64_t token) {
  if (side.packed) return data[quotient(first_row + token, factor.block) * factor.block_stride];
  const int64_t outer = quotient(segment, side.inner), inner = segment - outer * side.inner;
  return data[outer * factor.outer_stride + inner * factor.inner_stride +
              quotient(token, factor.block) * factor.block_stride];
}

// The number of a row's centroid, of any integer type.
inline int64_t load_code(device const uchar* codes, int32_t bytes, int32_t is_signed, int64_t row) {
  switch (bytes) {
    case 1:
      return is_signed ? int64_t(((device const int8_t*)codes)[row]) : int64_t(codes[row]);
    case 2:
      return is_signed ? int64_t(((device const int16_t*)codes)[row]) : int64_t(((device const uint16_t*)codes)[row]);
    case 4:
      return ((device const int32_t*)codes)[row];
    default:
      return ((device const int64_t*)codes)[row];
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
