// What forward and backward of the soft maximum share: tiles of both sides in shared memory, a chunk of features at a
// time, and the similarities of a tile.
#pragma once

#include "device_problem.cuh"
#include "ptx/cp_async.cuh"
#include "soft_products.cuh"

namespace maxsim {
namespace cuda {

constexpr int kSoftRows = 64;  // of the side that owns results; 16 a warp, and only as many warps as it has rows for

struct SoftArgs {
  Problem problem;
  float to_log;              // similarity to logarithm of base 2: log2(e) / tau
  const float* query_norms;  // 1 / norm by token row; null = not normalising
  const float* document_norms;
  const float* grad_scores;  // backward
  float* scores;             // forward
  float* parts;              // written by the forward, where it is not null, and read by the backward
  int64_t width;             // of a pair's parts
  int splits;                // backward: blocks that share the other side's segments
  float* partial;            // their sums, [splits, rows of the owning side, d] and then [splits, rows]
};

struct alignas(16) SoftTiles {
  char own[kSoftRows * kSoftPitch];
  char other[kSoftTokens * kSoftPitch];
  float column_scale[kSoftTokens];
  bool column_kept[kSoftTokens];  // false also behind the last token
};

// One side of the work: some segment of it.
struct SoftSide {
  const Segments& side;
  const float* norms;
  Span span;
  int64_t segment;

  __device__ SoftSide(const Segments& side, const float* norms, int64_t segment)
      : side(side), norms(norms), span(span_of(side, segment)), segment(segment) {}

  __device__ bool has(int64_t token) const { return token < span.length && token_kept(side, span, token); }
  __device__ float scale(int64_t token) const { return norms ? norms[span.first_row + token] : 1.f; }
};

// `rows` tokens from `first` on, features from `feature` on, as Op multiplies them; zeros where there is nothing.
template <class Op>
__device__ __forceinline__ void load_rows(char* to, const SoftSide& from, int64_t first, int rows, int64_t feature) {
  using Element = typename Op::Element;
  constexpr int kPieces = kSoftBytes / 16, kEach = 16 / sizeof(Element);
  const Segments& side = from.side;
  for (int i = threadIdx.x; i < rows * kPieces; i += blockDim.x) {
    const int64_t token = first + i / kPieces, k = feature + i % kPieces * kEach;
    char* place = to + i / kPieces * kSoftPitch + i % kPieces * 16;
    uint4 piece = make_uint4(0, 0, 0, 0);
    if (k < side.dim && from.has(token)) {
      const int64_t row = from.span.begin + token * side.token_stride;
      const char* source = static_cast<const char*>(side.data) + (row + k) * sizeof(Element);
      if (side.dtype == Op::kType && side.feature_stride == 1 && k + kEach <= side.dim &&
          reinterpret_cast<uint64_t>(source) % 16 == 0) {
        ptx::copy_16(place, source, 16);
        continue;
      }
      Element* elements = reinterpret_cast<Element*>(&piece);
      for (int e = 0; e < kEach && k + e < side.dim; ++e)
        elements[e] = static_cast<Element>(load_feature(side, row, k + e));
    }
    *reinterpret_cast<uint4*>(place) = piece;
  }
  ptx::copy_commit();
}

// One similarity in fp32, feature by feature, for what cannot be split.
__device__ __noinline__ float exact_similarity(const SoftSide& own, int64_t token, const SoftSide& other,
                                               int64_t other_token) {
  if (!own.has(token) || !other.has(other_token)) return 0.f;
  const int64_t a = own.span.begin + token * own.side.token_stride;
  const int64_t b = other.span.begin + other_token * other.side.token_stride;
  float sum = 0.f;
  for (int64_t k = 0; k < own.side.dim; ++k)
    sum = fmaf(load_feature(own.side, a, k), load_feature(other.side, b, k), sum);
  return sum;
}

// How many columns a tile has whose first token this is: a multiple of 16.
__device__ __forceinline__ int columns_of(const SoftSide& other, int64_t token) {
  return static_cast<int>(min((other.span.length - token + 15) / 16 * 16, int64_t{kSoftTokens}));
}

// Similarities of the own tokens from `row` on and the other side's from `token` on, before scaling. Chunks are taken
// in an order that ends with number `last`, which is what `tiles` then holds. `fresh`: the own rows are not there yet.
template <class Op>
__device__ __forceinline__ void tile_similarities(SoftTiles& tiles, const SoftSide& own, int64_t row,
                                                  const SoftSide& other, int64_t token, int last, bool fresh,
                                                  float (&s)[8][4]) {
  const int64_t dim = own.side.dim;
  const int columns = columns_of(other, token);
  const int chunks = static_cast<int>((dim + Op::kFeatures - 1) / Op::kFeatures);
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) s[j][i] = 0.f;
  for (int step = 1; step <= chunks; ++step) {
    const int chunk = (last + step) % chunks;
    const int64_t feature = int64_t{chunk} * Op::kFeatures;
    __syncthreads();  // everybody is done with what was there
    if (fresh || chunks > 1) load_rows<Op>(tiles.own, own, row, blockDim.x / 2, feature);
    load_rows<Op>(tiles.other, other, token, columns, feature);
    if (step == 1)
      for (int i = threadIdx.x; i < kSoftTokens; i += blockDim.x) {
        tiles.column_kept[i] = other.has(token + i);
        tiles.column_scale[i] = tiles.column_kept[i] ? other.scale(token + i) : 0.f;
      }
    ptx::copy_wait<0>();
    __syncthreads();
    Op::similarities(tiles.own, tiles.other, static_cast<int>(min(dim - feature, int64_t{Op::kFeatures})), columns, s);
  }
  if constexpr (Op::kExactWhereNaN) {
    bool strange = false;
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) strange |= s[j][i] != s[j][i];
    if (__builtin_expect(strange, 0)) {
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (s[j][i] != s[j][i])
            s[j][i] = exact_similarity(own, row + threadIdx.x / 32 * 16 + fragment_row(i), other,
                                       token + j * 8 + fragment_column(i));
    }
  }
}

}  // namespace cuda
}  // namespace maxsim
