// MaxSim over residual documents on wgmma: a warpgroup's 64 rows are 16 tokens of each of its warps, decompressed in
// registers, and the columns are queries in shared memory.
#pragma once

#include "ptx/wgmma_registers.cuh"
#include "residual_mma.cuh"
#include "residual_prologue.cuh"
#include "sm90_residual_config.cuh"

namespace maxsim {
namespace cuda {

template <int kBlocks>
struct Sm90ResidualShared {
  float factors[kBlocks][32];
  uint32_t kept[kBlocks];
  int32_t valid[kBlocks];
  int steps[kResidualWarps];
  // Maxima of the documents that a warp shares with those before it and those behind it.
  float split[kResidualWarps][2][kBlocks][32];
};

// Codes of any width as they lie in memory. What a code means is asked a step later.
template <int kBytes>
struct StreamCode {
  uint32_t low = 0, high = 0;

  __device__ __forceinline__ void load(const CodeView& codes, int64_t row) {
    if constexpr (kBytes == 2)  // into 32 bits at once: to widen it later would wait for it
      asm volatile("ld.global.nc.u16 %0, [%1];" : "=r"(low) : "l"(static_cast<const uint16_t*>(codes.data) + row));
    if constexpr (kBytes == 4) low = __ldg(static_cast<const uint32_t*>(codes.data) + row);
    if constexpr (kBytes == 8) {
      const uint2 both = __ldg(static_cast<const uint2*>(codes.data) + row);
      low = both.x, high = both.y;
    }
  }
  // Negative ones are large without their sign, and no fewer than `limit`.
  static __device__ __forceinline__ uint32_t limit(const Residuals& index) {
    const int64_t most = kBytes == 2 && index.codes.is_signed ? 1 << 15 : INT32_MAX;
    return static_cast<uint32_t>(min(index.centroid_count, most));
  }
  __device__ __forceinline__ bool known(uint32_t limit) const { return (kBytes < 8 || high == 0) && low < limit; }
};

// A warp's maxima become scores.
template <int kBlocks>
struct Sm90ResidualScores {
  const ResidualArgs& args;
  Sm90ResidualShared<kBlocks>& shared;
  int64_t first_query;
  int queries;  // of this group

  __device__ __forceinline__ void write(int64_t document, const float (&best)[kBlocks]) const {
    const int lane = threadIdx.x % 32;
    double total = 0;
    int query = 0, chunk = 0;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      if (query >= queries) return;
      const bool counts = shared.kept[b] >> lane & 1;
      total += sum_lanes(counts ? static_cast<double>(best[b] * shared.factors[b][lane]) : 0.0);
      if (++chunk < args.chunks) continue;
      if (lane == 0)
        args.scores[(first_query + query) * args.problem.documents.count + document] =
            shared.valid[b] ? static_cast<float>(total) : __int_as_float(0x7fc00000);
      total = 0, chunk = 0, ++query;
    }
  }

  __device__ __forceinline__ float* slot(int64_t warp, bool behind) const {
    const int64_t at = (int64_t{blockIdx.y} * args.stream.warps + warp) * 2 + behind;
    return args.stream.partials + at * kBlocks * 32 + threadIdx.x % 32;
  }

  // The parts of documents that this warp has in front of its other tokens [0] and behind them [1], -1 where there is
  // none: whoever comes last of those that have a part brings all of them together.
  __device__ __forceinline__ void meet(const StreamParts& parts, int number, const int32_t (&documents)[2]) const {
    const Segments& side = args.problem.documents;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int first[2] = {}, last[2] = {};
#pragma unroll
    for (int behind = 0; behind < 2; ++behind) {
      if (documents[behind] < 0) continue;
      first[behind] = parts.of(side.offsets[documents[behind]]);
      last[behind] = parts.of(side.offsets[documents[behind] + 1] - 1);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) __stcg(slot(number, behind) + 32 * b, shared.split[warp][behind][b][lane]);
    }
    __threadfence();
    __syncwarp();
    int before = -1;
    if (lane < 2 && (lane ? documents[1] : documents[0]) >= 0)
      before =
          atomicAdd(args.stream.arrivals + int64_t{blockIdx.y} * args.stream.warps + (lane ? first[1] : first[0]), 1);
    __threadfence();
#pragma unroll
    for (int behind = 0; behind < 2; ++behind) {
      if (documents[behind] < 0 || __shfl_sync(~0u, before, behind) != last[behind] - first[behind]) continue;
      float best[kBlocks];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) best[b] = -INFINITY;
      for (int other = first[behind]; other <= last[behind]; ++other)
#pragma unroll
        for (int b = 0; b < kBlocks; ++b)
          best[b] = max_nan(best[b], __ldcg(slot(other, other == first[behind]) + 32 * b));
      write(documents[behind], best);
    }
  }
};

template <class E, int kBits, bool kTable, int kBlocks, int kCode>
__global__ void __launch_bounds__(kResidualThreads, Sm90Residual<kTable, kBlocks, kBits>::kPerSm)
    sm90_residual(const __grid_constant__ ResidualArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  using C = Sm90Residual<kTable, kBlocks, kBits>;
  using Rows = std::conditional_t<kTable, TableStep<kBits>, Step<E, kBits, 1, true>>;
  using Table = Lookup<kBits, kTable || kBits <= 2>;
  __shared__ __align__(128) unsigned char lookup[kLookupBytes];
  __shared__ Sm90ResidualShared<kBlocks> shared;
  extern __shared__ __align__(16) unsigned char memory[];
  unsigned char* staged = memory + (-static_cast<uint32_t>(__cvta_generic_to_shared(memory)) & 1023);
  const Problem& problem = args.problem;
  const Segments& side = problem.documents;
  const StreamPlan& plan = args.stream;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int number = blockIdx.x * kResidualWarps + warp;
  const StreamParts parts(side, plan.warps);

  asm volatile("griddepcontrol.wait;" ::: "memory");
  const int32_t document = __ldcg(plan.first_document + number);
  const float multiplier = __ldcg(plan.scalars), longest = __ldcg(plan.scalars + 1);
  bool out_of_order = false;
  for (int i = threadIdx.x; i < plan.prologue_blocks; i += kResidualThreads)
    out_of_order |= __ldcg(plan.out_of_order + i) != 0;
  constexpr int kChunksPerBlock = kQueryBlockBytes / 16;
  const uint4* columns_from = plan.columns + int64_t{blockIdx.y} * kBlocks * kChunksPerBlock;
#pragma unroll 4
  for (int i = threadIdx.x; i < kBlocks * kChunksPerBlock; i += kResidualThreads)
    reinterpret_cast<uint4*>(staged)[i] = __ldcg(columns_from + i);
#pragma unroll
  for (int byte = threadIdx.x; byte < 256; byte += kResidualThreads) {
    uint32_t entry[Table::kWords];
#pragma unroll
    for (int word = 0; word < Table::kWords; ++word) entry[word] = __ldcg(plan.entries + byte * Table::kWords + word);
    Table::fill_row(reinterpret_cast<uint32_t*>(lookup), byte, entry);
  }
  for (int i = threadIdx.x; i < kBlocks * 32; i += kResidualThreads)
    shared.factors[i / 32][i % 32] = __ldcg(plan.factors + int64_t{blockIdx.y} * kBlocks * 32 + i);
  if (threadIdx.x < kBlocks) {
    shared.kept[threadIdx.x] = __ldcg(plan.kept + int64_t{blockIdx.y} * kBlocks + threadIdx.x);
    shared.valid[threadIdx.x] = __ldcg(plan.valid + int64_t{blockIdx.y} * kBlocks + threadIdx.x);
  }
  ptx::fence_async_proxy();
  const bool in_order = !__syncthreads_or(out_of_order);

  TokenStream stream(
      side, in_order ? parts.part(number, document, side.count) : unordered_part(number, plan.warps, side.count));
  const int own_steps = stream.steps();
  if (lane == 0) shared.steps[warp] = own_steps;
  __syncthreads();
  int steps = 0;
  for (int w = 0; w < kResidualWarps; ++w) steps = max(steps, shared.steps[w]);
  steps = __shfl_sync(~0u, steps, 0);
  if (steps == 0) return;

  const uint32_t own = Table::own(), limit = StreamCode<kCode>::limit(args.index);
  uint32_t operand = ptx::wgmma_operand(static_cast<uint32_t>(__cvta_generic_to_shared(staged)));
  const SimilarityScale scale(longest, args.index.centroid_norm, multiplier);
  const int64_t per_group = kBlocks / args.chunks, first_query = blockIdx.y * per_group;
  const Sm90ResidualScores<kBlocks> scores{args, shared, first_query,
                                           static_cast<int>(min(per_group, problem.queries.count - first_query))};
  int32_t split_before = -1, split_behind = -1;
  PositiveColumns columns[kBlocks];
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) columns[b].reset();

  // Codes are read two steps ahead, what they stand for and buckets one.
  Rows step;
  StreamCode<kCode> code, ahead;
  float inverse = 1.f, inverse_ahead = 1.f;
  const auto load_code = [&](const StreamStep& of) {
    const int32_t row = min(of.row + lane % 16, of.last);
    ahead.load(args.index.codes, row);
    if constexpr (kTable) inverse_ahead = __ldg(args.index.inverse_norms + row);
  };
  // A warp's tokens come from memory kStreamAhead steps before they are asked for: as many lanes as there are lines of
  // buckets, and one each for codes and lengths.
  constexpr int kLines = 16 * 16 * kBits / 128;
  const int64_t row_bytes = lane < kLines ? 16 * kBits : lane == kLines ? kCode : sizeof(float);
  const char* const lines = lane < kLines    ? reinterpret_cast<const char*>(args.index.bytes) + 128 * lane
                            : lane == kLines ? static_cast<const char*>(args.index.codes.data)
                                             : reinterpret_cast<const char*>(args.index.inverse_norms);
  const int32_t last_row = static_cast<int32_t>(side.extent - 1);
  const auto prefetch = [&](const StreamStep& of) {
    if (lane < kLines + 1 + kTable) prefetch_l2(lines + min(of.row + kStreamAhead * 16, last_row) * row_bytes);
  };
  const auto load_rows = [&](const StreamStep& of) {
#pragma unroll
    for (int j = 0; j < 2; ++j) step.packed[j].load(args, min(of.row + 8 * j + lane / 4, of.last));
  };
  StreamStep now = stream.next(), next = stream.next();
  load_code(now);
  code = ahead, inverse = inverse_ahead;
  load_rows(now);
  load_code(next);
  step.gather(args, code.known(limit) ? code.low : 0);
#pragma unroll 1
  for (int i = 0; i < steps; ++i) {
    asm volatile("" : "+r"(operand));  // else its sums with all offsets wait in registers
    const uint32_t unknown = __ballot_sync(~0u, !code.known(limit));
    float c[kBlocks > 1 ? 2 : 1][16];
    Factors<1> factors;
    if constexpr (kTable) {
      step.start_products(c[0], scale);
      factors.stored(inverse * multiplier);
    }
    step.add(args, lookup, own, multiplier);
    const StreamStep after = stream.next();
    code = ahead, inverse = inverse_ahead;
    load_rows(next);
    load_code(after);
    if constexpr (C::kPrefetch) prefetch(after);
    step.gather(args, code.known(limit) ? code.low : 0);
    if constexpr (!kTable) factors.from_squares(step);
    factors.spoil(unknown);

    const auto multiply = [&](int b) {
      float (&sums)[16] = c[b % 2];
      ptx::wgmma_fence();
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const uint64_t at = ptx::wgmma_descriptor(operand, b * kQueryBlockBytes + s / 4 * 4096 + s % 4 * 32);
        ptx::WgmmaRegisters<E>::run(sums, step.rows[0][s], at, s > 0 || kTable);
      }
      ptx::wgmma_commit();
    };
    multiply(0);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {  // a block's maxima are taken while the next one's products are on their way
      if (b + 1 < kBlocks) {
        multiply(b + 1);
        ptx::wgmma_wait<1>();
      } else {
        ptx::wgmma_wait<0>();
      }
      ptx::wgmma_settled(c[b % 2]);
      columns[b].take(c[b % 2], factors.low[0], factors.high[0]);
    }
    if (now.ends) {
      float best[kBlocks];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        best[b] = columns[b].gather();
        columns[b].reset();
      }
      if (!now.split) {
        scores.write(now.document, best);
      } else {
        const bool behind = in_order && side.offsets[now.document] >= stream.part.first;
        (behind ? split_behind : split_before) = now.document;
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) shared.split[warp][behind][b][lane] = best[b];
      }
    }
    now = next;
    next = after;
  }
  const int32_t split[2] = {split_before, split_behind};
  if (split_before >= 0 || split_behind >= 0) scores.meet(parts, number, split);
#endif
}

}  // namespace cuda
}  // namespace maxsim
