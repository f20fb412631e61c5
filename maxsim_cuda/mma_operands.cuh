// Operands of mma.sync that are read in pieces of 16 bytes, straight from global memory or from shared, and what a warp
// makes of its query rows.
#pragma once

#include "blocks.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/load.cuh"
#include "ptx/mma.cuh"
#include "ptx/shared.cuh"
#include "row_max.cuh"

namespace maxsim {
namespace cuda {

constexpr int kStepFeatures = 32;  // of two products: lane l has the 16 bytes of row l / 4 from feature 8 (l % 4) on

// The order of features within a product is free as long as both sides have the same.
template <class T>
__device__ __forceinline__ void multiply_step(float* products, const uint32_t (&rows)[2][4], const uint4& token) {
  const uint32_t b[2][2] = {{token.x, token.y}, {token.z, token.w}};
  float (&c)[4] = reinterpret_cast<float (&)[4]>(*products);
  ptx::mma<T>(c, rows[0], b[0]);
  ptx::mma<T>(c, rows[1], b[1]);
}

// Tokens of a tile in shared memory, rows of kPitch bytes, as each lane meets them: those of every other row have their
// halves of 64 bytes exchanged, so that eight lanes meet all banks.
template <int kPitch>
struct TilePieces {
  uint32_t at[2];

  // `odd`: the first one is one of those.
  __device__ __forceinline__ explicit TilePieces(uint32_t tile, int odd = 0) {
    const int lane = threadIdx.x % 32;
    at[0] = tile + lane / 4 * kPitch + (lane % 4 + (lane / 4 + odd & 1) * 4) * 16;
    at[1] = at[0] ^ 64;
  }
  __device__ __forceinline__ static int place(int row, int piece) {
    return row * kPitch + (piece ^ (row % 2 * 4)) * 16;
  }
  // Of row lane / 4 of eight rows.
  __device__ __forceinline__ uint4 load(int step, int eight) const {
    return ptx::load_shared_16(at[step % 2] + step / 2 * 128 + eight * 8 * kPitch);
  }
};

// Of the first `eights` of a tile; products of others are below all that are.
template <class T, int kPitch, int kSteps, int kCount>
__device__ __forceinline__ void multiply_tile(float (&products)[2][kCount], const uint32_t (&operands)[2][kSteps][2][4],
                                              const TilePieces<kPitch>& tokens, int eights = kCount / 4) {
#pragma unroll
  for (int tile = 0; tile < 2; ++tile)
#pragma unroll
    for (int i = 0; i < kCount; ++i) products[tile][i] = i / 4 < eights ? 0.f : -INFINITY;
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int group = 0; group < kCount / 4; ++group) {
      if (group >= eights) break;
      const uint4 token = tokens.load(step, group);
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) multiply_step<T>(&products[tile][group * 4], operands[tile][step], token);
    }
}

// Sum of squares of a row, by the four lanes that share it. Every kernel takes it in this order.
template <class T, int kSteps>
__device__ __forceinline__ float square_of(const uint4 (&pieces)[kSteps]) {
  float square = 0.f;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const T* part = reinterpret_cast<const T*>(&pieces[step]);
#pragma unroll
    for (int i = 0; i < 8; ++i) square = fmaf(static_cast<float>(part[i]), static_cast<float>(part[i]), square);
  }
  square += __shfl_xor_sync(~0u, square, 1);
  return square + __shfl_xor_sync(~0u, square, 2);
}

// One side, read in pieces.
struct Pieces {
  const Segments& side;
  bool aligned;  // a piece is one access

  MAXSIM_INLINE explicit Pieces(const Segments& side_) : side(side_) {
    const int64_t strides = side.token_stride | side.segment_stride.inner | side.segment_stride.outer | side.dim;
    aligned = side.feature_stride == 1 && ((reinterpret_cast<uintptr_t>(side.data) | strides * 2) & 15) == 0;
  }

  __device__ __forceinline__ const char* at(int64_t element) const {
    return static_cast<const char*>(side.data) + element * 2;
  }

  // Piece `piece` of the row that begins at `row`; zeros behind the last feature.
  __device__ __forceinline__ uint4 load(const char* row, int piece) const {
    if (!aligned) return gather(row, piece);
    return piece * 8 < side.dim ? __ldg(reinterpret_cast<const uint4*>(row) + piece) : make_uint4(0, 0, 0, 0);
  }

  __device__ __noinline__ uint4 gather(const char* row, int piece) const {
    uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (piece * 8 + i < side.dim)
        words[i / 2] |= uint32_t{reinterpret_cast<const uint16_t*>(row)[(piece * 8 + i) * side.feature_stride]}
                        << (i % 2 * 16);
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
};

// Both sides where they are padded: strides count bytes, tokens are those of a document.
struct PaddedSides {
  const char *documents, *queries;
  int64_t token_stride, document_stride, slab_stride, query_token_stride, query_stride;
  int32_t tokens, query_tokens, pieces;

  explicit PaddedSides(const Problem& problem)
      : documents(static_cast<const char*>(problem.documents.data)),
        queries(static_cast<const char*>(problem.queries.data)),
        token_stride(problem.documents.token_stride * 2),
        document_stride(2 * (problem.pairing == Pairing::cross ? problem.documents.segment_stride.outer
                                                               : problem.documents.segment_stride.inner)),
        slab_stride(problem.documents.segment_stride.outer * 2),
        query_token_stride(problem.queries.token_stride * 2),
        query_stride(problem.queries.segment_stride.outer * 2),
        tokens(static_cast<int32_t>(problem.documents.extent)),
        query_tokens(static_cast<int32_t>(problem.queries.extent)),
        pieces(static_cast<int32_t>(problem.documents.dim / 8)) {}
};

// Blocks of query tokens in a warp's registers: two row tiles of 16 each.
template <class T, int kSteps, bool kArgmax, int kHeld = 1>
struct QueryRows {
  static constexpr int kTiles = 2 * kHeld;
  uint32_t operands[kTiles][kSteps][2][4];  // in the order of the instruction, which wants four neighbouring registers
  float scale[kTiles][2];  // of rows lane / 4 of the upper and the lower half of each tile, where normalised
  RowState<kArgmax> best[kTiles];
  bool any_token;

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) best[tile].reset();
    any_token = false;
  }

  // The row, in its block, of a lane's pieces `part`, of which its four make its share of the block.
  __device__ __forceinline__ static int row_of(int part) { return part * 8 + static_cast<int>(threadIdx.x) % 32 / 4; }

  __device__ __forceinline__ void load(const ForwardArgs& args, const BlockInfo& block) {
    const Pieces queries(args.problem.queries);
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int row = row_of(part);
      const char* from = queries.at(block.begin + row * args.problem.queries.token_stride);
      uint4 pieces[kSteps];
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        pieces[step] = block.kept >> row & 1 ? queries.load(from, step * 4 + threadIdx.x % 4) : make_uint4(0, 0, 0, 0);
      hold(part, pieces);
      if (args.problem.normalize) scale[part / 2][part % 2] = inverse_norm(square_of<T>(pieces));
    }
  }

  // What block `held` will hold of rows of `count` pieces, of which there are `rows`. Everything is asked for before
  // anything is waited for.
  using Fetched = uint4[4][kSteps];
  __device__ __forceinline__ static void fetch(const char* from, int64_t stride, int rows, int count,
                                               Fetched& fetched) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int row = row_of(part);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const int piece = step * 4 + static_cast<int>(threadIdx.x) % 4;
        ptx::load_16_if<0>(row < rows && piece < count, from + row * stride + piece * 16,
                           reinterpret_cast<uint32_t*>(&fetched[part][step]));
      }
    }
  }
  __device__ __forceinline__ void hold(const Fetched& fetched, int held = 0) {
#pragma unroll
    for (int part = 0; part < 4; ++part) hold(held * 4 + part, fetched[part]);
  }

  // Shuffled to where they are: otherwise they stay in the registers that a wide load fills, and are moved before every
  // product.
  __device__ __forceinline__ void hold(int part, const uint4 (&pieces)[kSteps]) {
    const int lane = threadIdx.x % 32, tile = part / 2, half = part % 2;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      operands[tile][step][0][half] = __shfl_sync(~0u, pieces[step].x, lane);
      operands[tile][step][0][2 + half] = __shfl_sync(~0u, pieces[step].y, lane);
      operands[tile][step][1][half] = __shfl_sync(~0u, pieces[step].z, lane);
      operands[tile][step][1][2 + half] = __shfl_sync(~0u, pieces[step].w, lane);
    }
  }

  // Products with 2 kCount document tokens, the first of which is `first`.
  template <int kCount>
  __device__ __forceinline__ void take(const float (&products)[kTiles][kCount], int32_t first, bool full,
                                       const uint32_t* bits) {
    if constexpr (!kArgmax)
      if (full && take_positive(products)) return;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      take_products(products[tile], best[tile], TokensFrom{first}, threadIdx.x % 4 * 2, full, bits,
                    ColumnScale<false>{});
  }

  // Maxima by the bits of products, of as many as are raised before they are taken: right unless one is negative.
  struct Tops {
    int32_t row[2 * kTiles];

    __device__ __forceinline__ Tops() {
#pragma unroll
      for (int32_t& top : row) top = INT32_MIN;
    }
    template <int kCount>
    __device__ __forceinline__ void raise(const float (&products)[kTiles][kCount]) {
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i)
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          int32_t& top = row[tile * 2 + i % 2];
          top = __vimax3_s32(top, __float_as_int(products[tile][2 * i]), __float_as_int(products[tile][2 * i + 1]));
        }
    }
    // Of columns whose bits are set, two for each eight.
    template <int kCount>
    __device__ __forceinline__ void raise(const float (&products)[kTiles][kCount], uint32_t own) {
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        const int column = i / 2 * 8;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          int32_t& top = row[tile * 2 + i % 2];
          top = __vimax3_s32(top, own >> column & 1 ? __float_as_int(products[tile][2 * i]) : INT32_MIN,
                             own >> (column + 1) & 1 ? __float_as_int(products[tile][2 * i + 1]) : INT32_MIN);
        }
      }
    }
    // All rows are asked together.
    __device__ __forceinline__ bool positive() const {
      int32_t signs = 0;
#pragma unroll
      for (int32_t top : row) signs |= top;
      return !__any_sync(~0u, signs < 0);
    }
    // Over the four lanes that share a row.
    __device__ __forceinline__ void reduce() {
#pragma unroll
      for (int32_t& top : row)
#pragma unroll
        for (int step = 1; step <= 2; step *= 2) top = max(top, __shfl_xor_sync(~0u, top, step));
    }
  };

  __device__ __forceinline__ void take(const Tops& tops) {
#pragma unroll
    for (int row = 0; row < 2 * kTiles; ++row)
      best[row / 2].best[row % 2] = max_nan(best[row / 2].best[row % 2], __int_as_float(tops.row[row]));
  }
  template <int kCount>
  __device__ __forceinline__ bool take_positive(const float (&products)[kTiles][kCount]) {
    Tops tops;
    tops.raise(products);
    if (!tops.positive()) return false;
    take(tops);
    return true;
  }
  // As floats, of columns whose bits are set, two for each eight.
  template <int kCount>
  __device__ __forceinline__ void take_each(const float (&products)[kTiles][kCount], uint32_t own = ~0u) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (own >> (i / 4 * 8 + i % 2) & 1)
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) best[tile].take(i % 4 / 2, products[tile][i], 0);
  }

  // The maximum of row `lane`, and its winner.
  __device__ __forceinline__ float row_maximum(bool normalize, int32_t& winner) {
    static_assert(kTiles == 2, "a row a lane");
    const int lane = threadIdx.x % 32, from = lane % 8 * 4;
    float value = 0.f;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      best[tile].reduce();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float own = best[tile].best[half];
        if (normalize) own *= scale[tile][half];
        own = __shfl_sync(~0u, own, from);
        const int32_t other = kArgmax ? __shfl_sync(~0u, best[tile].winner[half], from) : 0;
        if (lane / 8 == tile * 2 + half) value = own, winner = other;
      }
    }
    return value;
  }

  // The document has met all rows.
  __device__ __forceinline__ void finish(const ForwardArgs& args, const BlockInfo& block, int64_t target, bool valid) {
    const int lane = threadIdx.x % 32;
    int32_t winner = -1;
    const float value = row_maximum(args.problem.normalize, winner);
    if (block.query >= 0) {
      const bool counts = block.kept >> lane & 1;
      if (kArgmax)
        write_winners(args, block, pair_of(args, block, target), lane, counts && any_token && valid ? winner : -1);
      write_sums(args, block, target, lane == 0, sum_lanes(counts ? static_cast<double>(value) : 0.), valid, any_token);
    }
    reset();
  }
};

}  // namespace cuda
}  // namespace maxsim
