// Document tokens of a ColBERTv2 / PLAID index: a centroid's number each, and a bucket of `nbits` bits for each
// feature. Plain data beside a Problem whose documents have counts but no features: the binding fills it in.
#pragma once

#include "problem.h"

namespace maxsim {

// Centroid numbers of any integer type, one a token, contiguous.
struct CodeView {
  const void* data = nullptr;
  int32_t bytes = 4;
  bool is_signed = true;

  MAXSIM_INLINE int64_t operator[](int64_t row) const {
    switch (bytes) {
      case 1:
        return is_signed ? static_cast<const int8_t*>(data)[row] : static_cast<const uint8_t*>(data)[row];
      case 2:
        return is_signed ? static_cast<const int16_t*>(data)[row] : static_cast<const uint16_t*>(data)[row];
      case 4:
        return static_cast<const int32_t*>(data)[row];
      default:
        return static_cast<const int64_t*>(data)[row];
    }
  }
};

// Token `row` is centroids[codes[row]] + weights[bucket of each feature]; a byte holds 8 / nbits buckets, lowest bits
// first. Everything is contiguous.
struct Residuals {
  CodeView codes;
  const uint8_t* bytes = nullptr;
  int64_t row_bytes = 0;
  int64_t dim = 0;
  int32_t nbits = 0;
  const void* centroids = nullptr;
  DType centroid_type = DType::f32;
  int64_t centroid_count = 0;
  const void* weights = nullptr;  // [2 ** nbits]
  DType weight_type = DType::f32;
  const float* inverse_norms = nullptr;  // of each token, where an index stores them; null = computed when needed
  float centroid_norm = 0.f;             // no centroid is longer; set together with inverse_norms
  bool normalize = false;                // documents; Problem::normalize is the queries'
};

// Scores of every centroid [Nq, centroid_count, Lq] and the centroids of the documents' tokens; a problem's queries
// have Lq features then, one for each query token.
struct Approximation {
  CodeView codes;
  int64_t centroid_count = 0;
  const float* centroid_scores = nullptr;
  const uint8_t* probed = nullptr;  // [Nq, centroid_count]; documents with no such centroid score -inf; null = all
};

}  // namespace maxsim
