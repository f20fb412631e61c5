// The step that all forward kernels share: tiles of query rows and document tokens through simdgroup matrices.
#pragma once

#include <metal_simdgroup_matrix>
#include <metal_stdlib>

#include "device.h"
#include "params.h"
#include "places.h"

namespace maxsim {
namespace metal_backend {

using namespace metal;

// The tensors of a call, as the kernel's arguments bring them.
struct Tensors {
  device const uchar* queries;
  device const uchar* documents;
  device const uchar* query_extents;
  device const uchar* document_extents;
  device const uchar* query_mask;
  device const uchar* document_mask;
  device const uchar* query_ids;
  device const uchar* document_ids;
};

// What compressed documents have beside them; null in the kernels of the others.
struct Extras {
  device const uchar* codes;
  device const uchar* centroids;
  device const uchar* bucket_weights;
  device const float* query_scales;
  device const float* document_scales;
  device const float* document_minima;
};

// A query that meets the document at hand: where its rows are, and the score it writes. Pair -1 beyond the last query.
struct Slot {
  int64_t pair;
  int64_t query;
  Span span;  // without rows where the pair is not valid
};

// Threadgroup memory by use. The first bytes hold the step's rows, then, once all of a document is met, what its
// tokens came to for each row.
struct Workspace {
  threadgroup uchar* tile;
  threadgroup float* document_scale;    // [document tokens of a step] 1 / norm, or what is stored
  threadgroup float* query_scale;       // [rows]
  threadgroup float* row_value;         // [rows] what a query token adds to its score
  threadgroup float* document_minimum;  // [document tokens of a step] of stored documents
  threadgroup float* query_sum;         // [rows] of features, which every minimum is multiplied with
  threadgroup int32_t* kept;            // [document tokens of a step]
  threadgroup int32_t* found;           // [simdgroups] whether a document token was kept
  threadgroup Slot* slots;
};

constant constexpr int kRowBytes = kThreads * 4;

inline Workspace workspace_in(threadgroup uchar* memory) {
  Workspace space;
  space.tile = memory;
  threadgroup uchar* next = memory + kTileRows * kTilePitchBytes;
  space.document_scale = (threadgroup float*)next;
  space.query_scale = (threadgroup float*)(next + kRowBytes);
  space.row_value = (threadgroup float*)(next + 2 * kRowBytes);
  space.document_minimum = (threadgroup float*)(next + 3 * kRowBytes);
  space.query_sum = (threadgroup float*)(next + 4 * kRowBytes);
  space.kept = (threadgroup int32_t*)(next + 5 * kRowBytes);
  space.found = (threadgroup int32_t*)(next + 6 * kRowBytes);
  space.slots = (threadgroup Slot*)(next + 6 * kRowBytes + kSimdgroups * 4);
  return space;
}

static_assert(kTileRows * kTilePitchBytes + 6 * kRowBytes + kSimdgroups * 4 + kMaxRowGroups * int(sizeof(Slot)) <=
                  kForwardMemoryBytes,
              "the host asks for enough threadgroup memory");

struct Thread {
  int index;  // in the threadgroup
  int lane;
  int simdgroup;
  int row_group;  // which 32 query rows this simdgroup multiplies
  int slice;      // with which 32 document tokens of a step
};

// Four features of a row from feature `k` on, in the tile's type; zeros behind the last feature.
template <typename T, Format kFormat>
inline vec<T, 4> load_features(device const uchar* data, constant SideParams& side, int64_t row_begin, int64_t k,
                               int64_t dim) {
  vec<T, 4> features = vec<T, 4>(T(0.0f));
  if (side.vectorised && k + 4 <= dim) {
    if (kFormat != Format::stored || int32_t(side.element) < int32_t(Element::e4m3))
      return *(device const vec<T, 4>*)(data + (row_begin + k) * int64_t(sizeof(T)));
    const vec<uchar, 4> bytes = *(device const vec<uchar, 4>*)(data + row_begin + k);
    for (int i = 0; i < 4; ++i) features[i] = T(decode_byte(side.element, bytes[i]));
    return features;
  }
  for (int i = 0; i < 4; ++i)
    if (k + i < dim)
      features[i] =
          T(kFormat == Format::stored ? load_stored(data, side, row_begin, k + i)
                                      : load_element(data, side.element, row_begin + (k + i) * side.feature_stride));
  return features;
}

// Four features of a residual document's token: its centroid's, and a bucket's weight each, rounded together.
template <typename T>
inline vec<T, 4> decompress(constant ForwardParams& params, Tensors tensors, Extras extras, int64_t row, int64_t k) {
  constant ResidualParams& residual = params.residual;
  const int64_t code = load_code(extras.codes, residual.code_bytes, residual.codes_are_signed, row);
  device const uchar* packed = tensors.documents + row * residual.row_bytes;
  vec<T, 4> features = vec<T, 4>(T(0.0f));
  for (int i = 0; i < 4; ++i) {
    if (k + i >= params.problem.dim) continue;
    if (code < 0 || code >= residual.centroids) {
      features[i] = T(NAN);  // a token that names no centroid spoils its document's score
    } else {
      const int64_t bit = (k + i) * residual.bits;
      const int bucket = packed[bit / 8] >> (bit % 8) & ((1 << residual.bits) - 1);
      features[i] = T(load_element(extras.centroids, residual.centroid, code * params.problem.dim + k + i) +
                      load_element(extras.bucket_weights, residual.weight, bucket));
    }
  }
  return features;
}

// Rows of all slots, then document tokens from `first_token` on: features [k0, k0 + kTileRowBytes / sizeof(T)).
// Rows that do not exist are zeros: a multiplication by them is finite and looked at by nobody.
template <typename T, Format kFormat>
inline void stage(constant ForwardParams& params, Tensors tensors, Extras extras, Workspace space, Thread self,
                  Span document, int first_chunk, int first_token, int64_t k0) {
  constexpr int kPieces = kTileRowBytes / int(4 * sizeof(T));
  constant ProblemParams& problem = params.problem;
  const int query_rows = params.row_groups * kChunk;
  const int rows = query_rows + kThreads / params.row_groups;
  for (int i = self.index; i < rows * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const int64_t k = k0 + piece * 4;
    vec<T, 4> features = vec<T, 4>(T(0.0f));
    if (row < query_rows) {
      const int group = row / kChunk, slot = group / params.chunks;
      const int token = (first_chunk + group % params.chunks) * kChunk + row % kChunk;
      threadgroup const Span& query = space.slots[slot].span;
      if (token < query.length)
        features = load_features<T, kFormat>(tensors.queries, problem.queries,
                                             query.begin + token * problem.queries.token_stride, k, problem.dim);
    } else {
      const int token = first_token + row - query_rows;
      if (token < document.length)
        features =
            kFormat == Format::residual
                ? decompress<T>(params, tensors, extras, document.first_row + token, k)
                : load_features<T, kFormat>(tensors.documents, problem.documents,
                                            document.begin + token * problem.documents.token_stride, k, problem.dim);
    }
    *(threadgroup vec<T, 4>*)(space.tile + row * kTilePitchBytes + piece * int(4 * sizeof(T))) = features;
  }
}

// The sum of squares of one row of the tile, in the order of features wherever the row lies.
template <typename T>
inline float add_squares(threadgroup const uchar* tile, int row, float square) {
  threadgroup const T* features = (threadgroup const T*)(tile + row * kTilePitchBytes);
  for (int k = 0; k < kTileRowBytes / int(sizeof(T)); ++k) {
    const float value = float(features[k]);
    square = fma(value, value, square);
  }
  return square;
}

template <typename T>
inline float add_features(threadgroup const uchar* tile, int row, float sum) {
  threadgroup const T* features = (threadgroup const T*)(tile + row * kTilePitchBytes);
  for (int k = 0; k < kTileRowBytes / int(sizeof(T)); ++k) sum += float(features[k]);
  return sum;
}

// Multiplies this simdgroup's 32 query rows with its 32 document tokens, over the features in the tile.
template <typename T>
inline void multiply(threadgroup const uchar* tile, int row_groups, Thread self, int features,
                     thread simdgroup_matrix<float, 8, 8> (&sums)[4][4]) {
  constexpr int kPitch = kTilePitchBytes / int(sizeof(T));
  threadgroup const T* queries = (threadgroup const T*)tile + self.row_group * kChunk * kPitch;
  threadgroup const T* documents = (threadgroup const T*)tile + (row_groups + self.slice) * kChunk * kPitch;
  for (int k = 0; k < features; k += 8) {
    simdgroup_matrix<T, 8, 8> a[4], b[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      simdgroup_load(a[i], queries + i * 8 * kPitch + k, kPitch);
      simdgroup_load(b[i], documents + i * 8 * kPitch + k, kPitch, ulong2(0), true);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) simdgroup_multiply_accumulate(sums[i][j], a[i], b[j], sums[i][j]);
  }
}

// Whether the document has a token that counts; the same answer in every thread.
inline bool any_token_kept(constant ForwardParams& params, Tensors tensors, Workspace space, Thread self,
                           Span document) {
  if (!params.problem.documents.has_mask) return document.length > 0;
  bool found = false;
  for (int token = self.index; token < document.length; token += kThreads)
    found = found || token_kept(params.problem.documents, tensors.document_mask, document.mask_begin, token);
  found = simd_any(found);
  if (self.lane == 0) space.found[self.simdgroup] = found;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  found = false;
  for (int i = 0; i < kSimdgroups; ++i) found = found || space.found[i] != 0;
  return found;
}

}  // namespace metal_backend
}  // namespace maxsim
