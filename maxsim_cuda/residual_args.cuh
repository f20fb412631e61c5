// What the kernels on residual documents are told.
#pragma once

#include "../maxsim_common/residuals.h"
#include "device_problem.cuh"

namespace maxsim {
namespace cuda {

struct ResidualArgs {
  Problem problem;
  Residuals index;
  float* scores;
  int32_t* argmax;
  const uint16_t* table;  // similarities of every centroid: see residual_table.cuh; null = rows of centroids are read
  int32_t chunks;         // of 32 tokens, that a query has
  int32_t team;           // warps that share a document: 1 or all of a block
  bool aligned;           // the buckets of eight features can be read at once
};

// A residual document's tokens, as the kernel on plain multiply-adds reads them.
struct ResidualTokens {
  Residuals index;

  __device__ __forceinline__ float at(int64_t, const Span& span, int64_t token, int64_t k) const {
    const int64_t row = span.first_row + token, code = index.codes[row], bit = k * index.nbits;
    if (code < 0 || code >= index.centroid_count) return __int_as_float(0x7fc00000);
    const int bucket = index.bytes[row * index.row_bytes + bit / 8] >> bit % 8 & ((1 << index.nbits) - 1);
    return load_element(index.centroids, index.centroid_type, code * index.dim + k) +
           load_element(index.weights, index.weight_type, bucket);
  }
};

}  // namespace cuda
}  // namespace maxsim
