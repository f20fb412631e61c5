// Projection on Hopper: hidden states and the weight stream through a ring in shared memory, four warpgroups keep 64
// tokens' projections each in registers, and either meet resident queries with them or write them.
#pragma once

#include "hidden_args.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma_registers.cuh"

namespace maxsim {
namespace cuda {

enum class Projected { scored, scored_with_winners, written };

// A hidden state of 768 features is 1536 bytes, and while those come the tensor cores need three fifths of the time for
// its products: memory is the limit. The weight comes with every tile, from L2, so a tile is as many tokens as there
// are registers for accumulators: 256, which costs L2 half as much again. Two blocks that fetch half of the weight
// each, for both of them, are slower, as they wait for each other; a weight that stays leaves no room for enough hidden
// states on their way.
template <class T_, int N_, Projected kProjected_>
struct Sm90HiddenConfig {
  using T = T_;
  static constexpr Projected kProjected = kProjected_;
  static constexpr int N = N_;  // features of a projected token, padded
  static constexpr int kGroups = 4, kUnitRows = 64;
  static constexpr int kThreads = (kGroups + 1) * 128;
  // 96 registers a thread, moved to the math warpgroups from the one that loads.
  static constexpr int kMathRegisters = 112, kOtherRegisters = 32;
  static constexpr int kUnitBytes = kUnitRows * 128, kWeightBytes = N * 128;
  static constexpr int kStageBytes = kGroups * kUnitBytes + kWeightBytes;
  static constexpr bool kScored = kProjected != Projected::written;
  static constexpr int kQueryRows = 128;  // tokens of queries that are resident: what is left beside four stages
  static constexpr int kQueryBytes = kScored ? kQueryRows * N * 2 : 0;
  static constexpr int kStages = 4;
  static constexpr int kSharedBytes = 1024 + kStages * kStageBytes + kQueryBytes;  // 1024 to align
  static_assert(sizeof(T) == 2 && N % 64 == 0 && N <= 128, "rows of one or two atoms of 64 features");
  static_assert(kSharedBytes <= 226 * 1024, "what a block can have, less its barriers");
};

// 64-row units of tokens, a contiguous range for each block, in as few tiles as hold them.
struct HiddenRange {
  int32_t first, units, tiles;

  template <class C>
  static __device__ __forceinline__ HiddenRange of(int32_t rows) {
    const int64_t all = (rows - 1) / C::kUnitRows + 1;
    const int32_t first = static_cast<int32_t>(quotient(all * blockIdx.x, gridDim.x));
    const int32_t units = static_cast<int32_t>(quotient(all * (blockIdx.x + 1), gridDim.x)) - first;
    return {first, units, (units + C::kGroups - 1) / C::kGroups};
  }
  // Units before tile t: as even as they come.
  __device__ __forceinline__ int before(int t) const {
    return static_cast<int>(static_cast<uint32_t>(units) * static_cast<uint32_t>(t) / static_cast<uint32_t>(tiles));
  }
};

template <class C>
struct Sm90HiddenShared {
  uint64_t full[C::kStages], empty[C::kStages], queries;
  float bias[C::N];
};

template <class C>
struct Sm90HiddenConsumer {
  using T = typename C::T;
  using Key = MaximumKey<C::kProjected == Projected::scored_with_winners>;
  using KeyType = typename Key::Type;
  const HiddenArgs& args;
  Sm90HiddenShared<C>& shared;
  uint32_t ring, queries;  // operands
  int group, warp, lane;
  int stage = 0, phase = 0;
  uint32_t operand[C::N / 4];  // the projections, as wgmma takes them from registers

  __device__ __forceinline__ void release(int at) {
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&shared.empty[at]);
  }

  __device__ __forceinline__ void pass(int chunks) {
    for (int chunk = 0; chunk < chunks; ++chunk) {
      ptx::mbarrier_wait(&shared.full[stage], phase);
      release(stage);
      if (++stage == C::kStages) stage = 0, phase ^= 1;
    }
  }

  __device__ __forceinline__ void multiply(float (&c)[C::N / 2], int chunks) {
    int previous = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      ptx::mbarrier_wait(&shared.full[stage], phase);
      const uint32_t a = ring + stage * (C::kStageBytes / 16) + group * (C::kUnitBytes / 16);
      const uint32_t b = ring + stage * (C::kStageBytes / 16) + C::kGroups * (C::kUnitBytes / 16);
      ptx::wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        ptx::Wgmma<T, C::N>::run(c, ptx::wgmma_descriptor(a, k * 32), ptx::wgmma_descriptor(b, k * 32),
                                 chunk > 0 || k > 0);
      ptx::wgmma_commit();
      ptx::wgmma_wait<1>();
      if (chunk) release(previous);
      previous = stage;
      if (++stage == C::kStages) stage = 0, phase ^= 1;
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_settled(c);
    release(previous);
  }

  static __device__ __forceinline__ uint32_t packed(float low, float high) {
    if constexpr (std::is_same_v<T, __half>) {
      const __half2 pair = __floats2half2_rn(low, high);
      return *reinterpret_cast<const uint32_t*>(&pair);
    } else {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
      return *reinterpret_cast<const uint32_t*>(&pair);
    }
  }

  // Bias, norm, and the one rounding. A thread holds columns 8j + 2 (lane % 4) and the next of two rows.
  __device__ __forceinline__ void finish(float (&c)[C::N / 2], float (&factor)[2]) {
    float square[2] = {0.f, 0.f};
#pragma unroll
    for (int j = 0; j < C::N / 8; ++j) {
      const float2 bias = *reinterpret_cast<const float2*>(&shared.bias[j * 8 + lane % 4 * 2]);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        c[4 * j + e] += e % 2 ? bias.y : bias.x;
        square[e / 2] = fmaf(c[4 * j + e], c[4 * j + e], square[e / 2]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int step = 1; step <= 2; step *= 2) square[r] += __shfl_xor_sync(~0u, square[r], step);
      factor[r] = args.normalize ? inverse_norm(square[r]) : 1.f;
    }
#pragma unroll
    for (int i = 0; i < C::N / 4; ++i) operand[i] = packed(c[2 * i] * factor[i % 2], c[2 * i + 1] * factor[i % 2]);
  }

  struct Rows {
    int32_t document[2];  // of the thread's two; -1 where a row does not count
    int32_t token[2];
    int32_t from, to;  // documents of the warp's sixteen
  };

  __device__ __forceinline__ Rows rows_of(int32_t first) const {
    Rows rows;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t row = first + lane / 4 + r * 8, document = row / args.length, token = row % args.length;
      const bool kept =
          row < args.rows &&
          (!args.mask || args.mask[document * args.mask_document_stride + token * args.mask_token_stride]);
      rows.document[r] = kept ? document : -1;
      rows.token[r] = token;
    }
    rows.from = first / args.length;
    rows.to = min(first + 15, args.rows - 1) / args.length;
    return rows;
  }

  static __device__ __forceinline__ KeyType greater(KeyType a, KeyType b) { return a > b ? a : b; }

  // The products of the warp's sixteen tokens with 32 query tokens: a maximum for each lane, of the tokens of one
  // document after the other.
  __device__ __forceinline__ void take(const float (&products)[16], const Rows& rows, int block) {
    for (int document = rows.from; document <= rows.to; ++document) {
      KeyType best[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        best[i] = 0;
#pragma unroll
        for (int r = 0; r < 2; ++r)
          if (rows.document[r] == document)
            best[i] = greater(best[i], Key::of(products[i / 2 * 4 + r * 2 + i % 2], rows.token[r]));
      }
      // Each exchange leaves a lane half of its columns, of twice the rows.
#pragma unroll
      for (int half = 4; half >= 1; half /= 2) {
        const bool upper = lane & half * 4;
#pragma unroll
        for (int i = 0; i < half; ++i) {
          const KeyType sent = upper ? best[i] : best[i + half];
          best[i] = greater(upper ? best[i + half] : best[i], __shfl_xor_sync(~0u, sent, half * 4));
        }
      }
      const int column = lane / 4;  // of eight: its highest bit chose the half of four
      const int token = block * 32 + column / 2 * 8 + lane % 4 * 2 + column % 2;
      if (token < args.query_rows && best[0])
        atomicMax(static_cast<KeyType*>(args.maxima) + int64_t{document} * args.query_rows + token, best[0]);
    }
  }

  __device__ __forceinline__ void score(int32_t first) {
    const Rows rows = rows_of(first);
    const int blocks = (args.query_rows + 31) / 32;
    for (int block = 0; block < blocks; ++block) {
      float products[16] = {};
      ptx::wgmma_fence();
#pragma unroll
      for (int k = 0; k < C::N / 16; ++k)
        ptx::WgmmaRegisters<T>::run(
            products, operand + 4 * k,
            ptx::wgmma_descriptor(queries + block * (32 * 128 / 16), k / 4 * C::kQueryRows * 128 + k % 4 * 32), k > 0);
      ptx::wgmma_commit();
      ptx::wgmma_wait<0>();
      ptx::wgmma_settled(products);
      take(products, rows, block);
    }
  }

  // Four lanes share a row, each with two neighbouring features of every eight: they trade, so that each writes eight.
  __device__ __forceinline__ void write(int32_t first, const float (&factor)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t row = first + lane / 4 + r * 8;
#pragma unroll
      for (int part = 0; part < C::N / 32; ++part) {
        uint32_t x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = operand[part * 8 + i * 2 + r];
#pragma unroll
        for (int step = 1; step <= 2; step *= 2) {
          const bool upper = lane & step;
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (!(i & step)) {
              const uint32_t other = __shfl_xor_sync(~0u, upper ? x[i] : x[i + step], step);
              (upper ? x[i] : x[i + step]) = other;
            }
        }
        const int feature = part * 32 + lane % 4 * 8;
        if (row < args.rows && feature < args.dim)
          *reinterpret_cast<uint4*>(static_cast<T*>(args.projected) + int64_t{row} * args.dim + feature) =
              make_uint4(x[0], x[1], x[2], x[3]);
      }
      if (args.factors && lane % 4 == 0 && row < args.rows) args.factors[row] = factor[r];
    }
  }

  __device__ __forceinline__ void run(const HiddenRange& range, int chunks) {
    if (C::kScored) ptx::mbarrier_wait(&shared.queries, 0);
    for (int tile = 0; tile < range.tiles; ++tile) {
      const int before = range.before(tile), units = range.before(tile + 1) - before;
      if (__shfl_sync(~0u, group >= units, 0)) {
        pass(chunks);
        continue;
      }
      float c[C::N / 2] = {}, factor[2];  // cleared: else the compiler keeps their registers all along
      multiply(c, chunks);
      finish(c, factor);
      const int32_t first = (range.first + before + group) * C::kUnitRows + warp * 16;
      if constexpr (C::kScored)
        score(first);
      else
        write(first, factor);
    }
  }
};

// One thread keeps the ring full.
template <class C>
__device__ __forceinline__ void produce_hidden(const HiddenArgs& args, Sm90HiddenShared<C>& shared, char* ring,
                                               const HiddenRange& range, int chunks, const CUtensorMap* hidden_map,
                                               const CUtensorMap* weight_map, const CUtensorMap* query_map) {
  const uint64_t policy = ptx::pass_through_l2();
  int stage = 0, phase = 1;
  for (int tile = 0; tile < range.tiles; ++tile) {
    const int before = range.before(tile), units = range.before(tile + 1) - before;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      ptx::mbarrier_wait(&shared.empty[stage], phase);
      char* to = ring + stage * C::kStageBytes;
      uint64_t* full = &shared.full[stage];
      ptx::mbarrier_arrive_expect(full, units * C::kUnitBytes + C::kWeightBytes);
      for (int unit = 0; unit < units; ++unit)
        ptx::tma_load(to + unit * C::kUnitBytes, hidden_map, full, chunk * 64,
                      (range.first + before + unit) * C::kUnitRows, 0, 0, policy);
      ptx::tma_load(to + C::kGroups * C::kUnitBytes, weight_map, full, chunk * 64, 0, 0, 0);
      if (C::kScored && tile == 0 && chunk == 0) {
        const int blocks = (args.query_rows + 31) / 32;
        ptx::mbarrier_arrive_expect(&shared.queries, blocks * 32 * C::N * 2);
        for (int block = 0; block < blocks; ++block)
          for (int atom = 0; atom < C::N / 64; ++atom)
            ptx::tma_load(ring + C::kStages * C::kStageBytes + atom * C::kQueryRows * 128 + block * 32 * 128, query_map,
                          &shared.queries, atom * 64, block * 32, 0, 0);
      }
      if (++stage == C::kStages) stage = 0, phase ^= 1;
    }
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    sm90_hidden(const __grid_constant__ HiddenArgs args, const __grid_constant__ CUtensorMap hidden_map,
                const __grid_constant__ CUtensorMap weight_map, const __grid_constant__ CUtensorMap query_map) {
  extern __shared__ char dynamic[];
  __shared__ Sm90HiddenShared<C> shared;
  char* ring = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(dynamic) + 1023) & ~uintptr_t{1023});
  char* queries = ring + C::kStages * C::kStageBytes;
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0), warp = threadIdx.x % 128 / 32;
  const int lane = __shfl_xor_sync(~0u, threadIdx.x % 32, 0);
  if (threadIdx.x < C::N)
    shared.bias[threadIdx.x] =
        args.bias && threadIdx.x < args.dim ? load_element(args.bias, args.bias_dtype, threadIdx.x) : 0.f;
  if (threadIdx.x == C::kGroups * 128) {
    for (int i = 0; i < C::kStages; ++i) {
      ptx::mbarrier_init(&shared.full[i], 1);
      ptx::mbarrier_init(&shared.empty[i], C::kGroups * 4);
    }
    ptx::mbarrier_init(&shared.queries, 1);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  const HiddenRange range = HiddenRange::of<C>(args.rows);
  const int chunks = (args.inputs + 63) / 64;
  if (group < C::kGroups) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(C::kMathRegisters));
    Sm90HiddenConsumer<C>{args,
                          shared,
                          ptx::wgmma_operand(ptx::shared_address(ring)),
                          ptx::wgmma_operand(ptx::shared_address(queries)),
                          group,
                          warp,
                          lane}
        .run(range, chunks);
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(C::kOtherRegisters));
    if (warp == 0 && lane == 0)
      produce_hidden<C>(args, shared, ring, range, chunks, &hidden_map, &weight_map, &query_map);
  }
}

// Maxima to scores [queries][documents], and winners [queries][documents][query_length]: a warp for each pair.
template <bool kArgmax>
__global__ void __launch_bounds__(128)
    hidden_scores(const typename MaximumKey<kArgmax>::Type* maxima, int64_t queries, int64_t documents,
                  int32_t query_length, float* scores, int32_t* argmax) {
  using Key = MaximumKey<kArgmax>;
  const int lane = threadIdx.x % 32;
  for (int64_t i = int64_t{blockIdx.x} * 4 + threadIdx.x / 32; i < queries * documents; i += int64_t{gridDim.x} * 4) {
    const int64_t document = quotient(i, queries), query = i - document * queries;
    const auto* keys = maxima + i * query_length;
    double sum = 0;
    for (int token = lane; token < query_length; token += 32) {
      const auto key = keys[token];
      if (key) sum += Key::value(key);
      if constexpr (kArgmax) argmax[(query * documents + document) * query_length + token] = key ? Key::token(key) : -1;
    }
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) scores[query * documents + document] = static_cast<float>(sum);
  }
}

}  // namespace cuda
}  // namespace maxsim
