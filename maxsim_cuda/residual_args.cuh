// What the kernels on residual documents are told.
#pragma once

#include "../maxsim_common/residuals.h"
#include "device_problem.cuh"

namespace maxsim {
namespace cuda {

// What the prologue of the Hopper kernel leaves for it, and where the parts of a document come together.
struct StreamPlan {
  int32_t* out_of_order;    // a word from each block of the prologue that looked at documents
  int32_t* first_document;  // of each warp of a query group
  int32_t* arrivals;        // parts that are done, of the document that goes on behind a warp's part
  float* partials;          // [2 for each warp][query rows]: of the document it shares with warps before, and behind
  uint4* columns;           // query blocks as operands of wgmma
  float* factors;           // of query rows
  uint32_t* kept;           // rows of each query block that count
  int32_t* valid;           // whether a block's query is one
  uint32_t* entries;        // with similarities: of the look-up table of weights, one of each
  float* units;             // with similarities: what products are multiplied by, for each group
  uint4* table;             // similarities of every centroid with each group's queries (residual_table.cuh), or null
  int32_t groups, warps;    // of queries; for each group
  int32_t placing;          // blocks of the prologue that look at documents
  int32_t likely_rows;      // of a warp's part, if documents have all rows; with similarities
};

struct ResidualArgs {
  Problem problem;
  Residuals index;
  float* scores;
  int32_t* argmax;
  int32_t chunks;  // of 32 tokens, that a query has
  int32_t team;    // warps that share a document: 1 or all of a block
  bool aligned;    // the buckets of eight features can be read at once
  StreamPlan stream;
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
