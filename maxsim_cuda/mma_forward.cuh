// Forward on mma.sync, for every dtype, any d and GPUs from 7.5 on: four warps keep a ring of tiles full with cp.async,
// multiply them with query rows and keep the row maxima in registers. No score tile is ever written.
#pragma once

#include "mma_prepare.cuh"
#include "ptx/mma.cuh"
#include "row_max.cuh"

namespace maxsim {
namespace cuda {

template <class C, class T, bool kArgmax>
struct MmaConsumer {
  const ForwardArgs& args;
  MmaShared<C>& shared;
  const char* queries;
  const char* ring;
  int warp, lane, warp_m, warp_n, chunks;
  float products[C::kTilesM][C::kTilesN * 4];  // of all chunks so far, in the inputs' units; zero between tiles
  float squares[C::kTilesN];                   // of split tokens
  RowState<kArgmax> rows[C::kTilesM];
  bool any_token;

  __device__ __forceinline__ MmaConsumer(const ForwardArgs& args_, MmaShared<C>& shared_, const char* memory,
                                         int chunks_)
      : args(args_),
        shared(shared_),
        queries(memory),
        ring(memory + C::kResidentChunks * C::kRowBytes),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32),
        warp_m(warp / C::kWarpsN),
        warp_n(warp % C::kWarpsN),
        chunks(chunks_),
        any_token(false) {
    reset_rows();
    clear_products();
  }

  __device__ __forceinline__ void reset_rows() {
#pragma unroll
    for (int m = 0; m < C::kTilesM; ++m) rows[m].reset();
  }

  __device__ __forceinline__ int row_of(int m, int half) const {
    return warp_m * C::kTilesM * 16 + m * 16 + half * 8 + lane / 4;
  }
  __device__ __forceinline__ int column0() const { return warp_n * C::kTilesN * 8 + lane % 4 * 2; }

  __device__ __forceinline__ void clear_products() {
#pragma unroll
    for (int m = 0; m < C::kTilesM; ++m) clear(products[m]);
  }
  template <int kCount>
  __device__ __forceinline__ static void clear(float (&c)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) c[i] = 0.f;
  }

  // Features 16 k on of row tile m; `plane` is 128 for the low parts of split queries.
  __device__ __forceinline__ void fetch_queries(uint32_t (&a)[4], const char* from, int m, int k, int plane) {
    const int row = warp_m * C::kTilesM * 16 + m * 16 + lane % 16;
    ptx::ldmatrix(a, from + swizzled_chunk<C>(row, 2 * k + lane / 16) + plane);
  }
  __device__ __forceinline__ void fetch_tokens(uint32_t (&b)[C::kTilesN][2], const char* from, int k) {
#pragma unroll
    for (int n = 0; n < C::kTilesN; n += 2) {
      const int row = warp_n * C::kTilesN * 8 + n * 8 + lane / 16 * 8 + lane % 8;
      uint32_t two[4];
      ptx::ldmatrix(two, from + swizzled_chunk<C>(row, 2 * k + lane / 8 % 2));
      b[n][0] = two[0], b[n][1] = two[1], b[n + 1][0] = two[2], b[n + 1][1] = two[3];
    }
  }
  __device__ __forceinline__ const char* query_rows(int stage, int chunk) const {
    return C::kStream ? ring + stage * C::kStageBytes + C::kTileBytes : queries + chunk * C::kRowBytes;
  }

  __device__ __forceinline__ void multiply_plain(int stage, int chunk) {
    const char* tokens = ring + stage * C::kStageBytes;
    const char* from = query_rows(stage, chunk);
#pragma unroll(C::kProducts >= 24 ? 2 : 1)
    for (int k = 0; k < kChunk / 16; ++k) {
      uint32_t a[C::kTilesM][4], b[C::kTilesN][2];
#pragma unroll
      for (int m = 0; m < C::kTilesM; ++m) fetch_queries(a[m], from, m, k, 0);
      fetch_tokens(b, tokens, k);
#pragma unroll
      for (int m = 0; m < C::kTilesM; ++m)
#pragma unroll
        for (int n = 0; n < C::kTilesN; ++n)
          ptx::mma<T>(reinterpret_cast<float (&)[4]>(products[m][4 * n]), a[m], b[n]);
    }
  }

  // Three products of halves: what the fourth would add is below the rounding of fp32. Eight tokens at a time, because
  // both their halves stay in registers while all query rows meet them.
  __device__ __forceinline__ void multiply_split(int stage, int chunk) {
    const char* tokens = ring + stage * C::kStageBytes;
    const char* from = query_rows(stage, chunk);
    const float* row_units = shared.row_unit[C::kStream ? stage : chunk];
#pragma unroll
    for (int n = 0; n < C::kTilesN; ++n) {
      const Segments& side = args.problem.documents;
      const int token = warp_n * C::kTilesN * 8 + n * 8 + lane / 4;
      const float scale = side.scale ? shared.token_scale[stage][token] : 1.f;
      const float minimum = side.minimum ? shared.token_minimum[stage][token] : 0.f;
      SplitRow row;
      row.load<C>(tokens, token, side.dtype, args.problem.normalize, scale, minimum);
      uint32_t high[4][2], low[4][2];
#pragma unroll
      for (int s = 0; s < 4; ++s)
#pragma unroll
        for (int half = 0; half < 2; ++half) row.split(s, half, high[s][half], low[s][half]);
      squares[n] = chunk == 0 ? row.square : squares[n] + row.square;
      const float2 unit = of_columns(minimum != 0.f ? row.unit : row.unit * scale);
#pragma unroll
      for (int m = 0; m < C::kTilesM; ++m) {
        float main[4] = {}, small[2][4] = {};  // apart, so that no product waits for another for long
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          uint32_t a[4];
          fetch_queries(a, from, m, s, 0);
          ptx::mma<T>(main, a, high[s]);
          if (args.allow_tf32) continue;
          ptx::mma<T>(small[0], a, low[s]);
          fetch_queries(a, from, m, s, 128);
          ptx::mma<T>(small[1], a, high[s]);
        }
        const float row_unit[2] = {row_units[row_of(m, 0)], row_units[row_of(m, 1)]};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& total = products[m][4 * n + e];
          total = fmaf(main[e] + (small[0][e] + small[1][e]), row_unit[e / 2] * (e % 2 ? unit.y : unit.x), total);
        }
      }
    }
  }

  // A value of this thread's row of tokens, lane / 4, as one of its columns, 2 (lane % 4) and the next.
  __device__ __forceinline__ float2 of_columns(float value) const {
    const int first = lane % 4 * 8;
    return make_float2(__shfl_sync(~0u, value, first), __shfl_sync(~0u, value, first + 4));
  }

  __device__ __forceinline__ void normalize_products() {
#pragma unroll
    for (int n = 0; n < C::kTilesN; ++n) {
      const float2 factor = of_columns(inverse_norm(squares[n]));
#pragma unroll
      for (int m = 0; m < C::kTilesM; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e) products[m][4 * n + e] *= e % 2 ? factor.y : factor.x;
    }
  }

  template <bool kScaled>
  __device__ __forceinline__ void take_maxima(int stage, const ColumnScale<kScaled>& scale) {
    const MmaStage& info = shared.stages[stage];
#pragma unroll
    for (int m = 0; m < C::kTilesM; ++m)
      take_products(products[m], rows[m], TokensFrom{info.first_token}, column0(), info.flags & StageInfo::kFull,
                    info.bits, scale);
  }

  __device__ __forceinline__ void consume(int stage) {
    const MmaStage& info = shared.stages[stage];
    if constexpr (C::kSplit) {
      multiply_split(stage, info.chunk);
      if (info.chunk + 1 < chunks) return;
      if (args.problem.normalize) normalize_products();
      take_maxima(stage, ColumnScale<false>{});
    } else {
      multiply_plain(stage, info.chunk);
      if (info.chunk + 1 < chunks) return;
      if (args.problem.normalize)
        take_maxima(stage, ColumnScale<true>{shared.token_scale[stage]});
      else
        take_maxima(stage, ColumnScale<false>{});
    }
    clear_products();
    any_token |= (info.flags & StageInfo::kAnyToken) != 0;
    if (!(info.flags & StageInfo::kLast)) return;
    finish(stage, info);
    any_token = false;
    reset_rows();
  }

  // Rows meet their other columns in shared memory; then each block's warp sums it.
  __device__ __forceinline__ void finish(int stage, const MmaStage& info) {
#pragma unroll
    for (int m = 0; m < C::kTilesM; ++m) {
      rows[m].reduce();
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (lane % 4 == 0) {
          shared.best[warp_n][row_of(m, half)] = rows[m].best[half];
          if (kArgmax) shared.winner[warp_n][row_of(m, half)] = rows[m].winner[half];
        }
    }
    __syncthreads();
    if (warp >= C::kBlocks) return;
    const BlockInfo& owner = shared.blocks[C::kStream ? stage : 0][warp];
    if (owner.query < 0) return;
    const int row = warp * kBlockTokens + lane;
    RowState<kArgmax> best;
    best.reset();
#pragma unroll
    for (int w = 0; w < C::kWarpsN; ++w) best.take(0, shared.best[w][row], kArgmax ? shared.winner[w][row] : 0);
    const bool counts = owner.kept >> lane & 1, valid = !(info.flags & StageInfo::kInvalid);
    if (kArgmax)
      write_winners(args, owner, pair_of(args, owner, info.target), lane,
                    counts && any_token && valid ? best.winner[0] : -1);
    const TokenFactor& given = args.problem.queries.scale;
    float scale = args.problem.normalize ? shared.row_scale[C::kStream ? stage : 0][row] : 1.f;
    if (given && counts)
      scale = Segments::factor(given, args.problem.queries.factors(given, owner.query), owner.row + lane);
    const double sum = sum_lanes(counts ? static_cast<double>(best.best[0] * scale) : 0.);
    write_sums(args, owner, info.target, lane == 0, sum, valid, any_token);
  }
};

template <class C, class T, bool kArgmax>
__global__ void __launch_bounds__(C::kThreads, C::kPerSm)
    mma_forward(const __grid_constant__ ForwardArgs args, int stages) {
  extern __shared__ __align__(128) char memory[];
  __shared__ MmaShared<C> shared;
  const Problem& problem = args.problem;
  const int chunks = static_cast<int>((problem.queries.dim + kChunk - 1) / kChunk);
  MmaLoader<C> loader(args, shared, memory, chunks);
  MmaConsumer<C, T, kArgmax> consumer(args, shared, memory, chunks);
  int in_flight = 0, head = 0, tail = 0;  // stages loaded, the next one to load, the next one to multiply
  const bool prepares_queries = C::kSplit || problem.normalize, prepares_tokens = !C::kSplit && problem.normalize;
  const auto wait_for_queries = [&] {
    loader.load_resident();
    ptx::copy_commit();
    ptx::copy_wait<0>();
    __syncthreads();
    for (int chunk = 0; prepares_queries && chunk < chunks; ++chunk) {
      prepare_queries<C, T>(memory + chunk * C::kRowBytes, problem, chunk ? shared.row_scale[0] : nullptr,
                            shared.row_unit[C::kStream ? 0 : chunk], shared.row_scale[0], chunk + 1 == chunks);
      __syncthreads();
    }
  };
  loader.find_first();
  while (true) {
    __syncthreads();  // the step is known, and nobody reads the stage before the next any more
    const bool more = loader.step().exists;
    if (!more && in_flight == 0) return;
    const bool reloads = !C::kStream && more && loader.step().new_queries;
    if (more && (!reloads || in_flight == 0)) {
      if (reloads) wait_for_queries();
      loader.load(head);
      ptx::copy_commit();
      loader.find_next();
      head = head + 1 == stages ? 0 : head + 1;
      if (++in_flight < stages) continue;
    }
    in_flight == 3 ? ptx::copy_wait<2>() : in_flight == 2 ? ptx::copy_wait<1>() : ptx::copy_wait<0>();
    __syncthreads();  // the stage has arrived
    if (prepares_tokens || (C::kStream && prepares_queries)) {
      const int chunk = shared.stages[tail].chunk, before = (tail == 0 ? stages : tail) - 1;
      const bool last = chunk + 1 == chunks;
      char* tile = memory + C::kResidentChunks * C::kRowBytes + tail * C::kStageBytes;
      if (prepares_tokens)
        prepare_tokens<C, T>(tile, chunk ? shared.token_scale[before] : nullptr, shared.token_scale[tail], last);
      if (C::kStream)
        prepare_queries<C, T>(tile + C::kTileBytes, problem, chunk ? shared.row_scale[before] : nullptr,
                              shared.row_unit[tail], shared.row_scale[tail], last);
      __syncthreads();
    }
    consumer.consume(tail);
    tail = tail + 1 == stages ? 0 : tail + 1;
    --in_flight;
  }
}

}  // namespace cuda
}  // namespace maxsim
