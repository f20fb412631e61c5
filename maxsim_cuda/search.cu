// PLAID's search as a row of launches: the probed centroids' marks, the documents that have one, their approximate
// scores, the best of them exactly, and the best of those.
#include "search.h"

#include <algorithm>
#include <type_traits>

#include "approx.cuh"
#include "centroid_tile.cuh"
#include "forward_args.cuh"
#include "launch_after.cuh"
#include "ptx/dependent_launch.cuh"
#include "ranking.cuh"
#include "residual_launch.h"

namespace maxsim {
namespace cuda {
namespace {

constexpr int kSearchThreads = 256;
constexpr int kProbeSlice = 256;                                       // centroids
constexpr int kProbeTiles = kProbeSlice / 16 / (kSearchThreads / 32);  // of a warp
// Lanes that share a document, and tokens that each of them asks for at once.
constexpr int kProbeLanes = 8, kProbeTokens = 4;
constexpr int kProbeDocuments = kSearchThreads / kProbeLanes;
constexpr int64_t kMostMarks = 48 << 10;  // bytes of shared memory

__device__ __forceinline__ uint32_t most_of_warp(uint32_t value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(~0u, value);
#else
#pragma unroll
  for (int step = 1; step <= 16; step *= 2) value = max(value, __shfl_xor_sync(~0u, value, step));
  return value;
#endif
}

struct ProbeArgs {
  Segments queries;
  const __half* centroids;  // where similarities are still to be computed
  float* by_centroid;       // [Nq, C, Lq]
  int64_t centroid_count;
  int probes;
  Key* best;
  uint32_t* zeroed;  // what is counted and marked later
  int64_t zeros;
};

struct ProbeShared {
  float similarities[kProbeSlice][33];
  alignas(16) unsigned char queries[kQueryBlockBytes];
  float factors[32];
};

// Similarities of a warp's centroids with the 32 query tokens from `token` on.
__device__ __forceinline__ void multiply_centroids(const CentroidTile<__half> (&tiles)[kProbeTiles],
                                                   ProbeShared& shared) {
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * (16 * kProbeTiles) + lane / 4;
#pragma unroll
  for (int tile = 0; tile < kProbeTiles; ++tile) {
    float sums[4][4] = {};
    tiles[tile].multiply(shared.queries, sums);
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = 8 * n + lane % 4 * 2 + e % 2;
        shared.similarities[first + 16 * tile + e / 2 * 8][column] = sums[n][e] * shared.factors[column];
      }
  }
}

// The best centroids of each query token among those of a slice, as keys, by a warp a token.
template <bool kMultiply>
__global__ void __launch_bounds__(kSearchThreads, 2) probe_slices(const __grid_constant__ ProbeArgs args) {
  __shared__ ProbeShared shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, slices = static_cast<int>(gridDim.x);
  const int64_t query = blockIdx.y, first = int64_t{blockIdx.x} * kProbeSlice;
  const int rows = static_cast<int>(min(int64_t{kProbeSlice}, args.centroid_count - first));
  const int tokens = static_cast<int>(args.queries.extent);
  CentroidTile<__half> tiles[kProbeTiles];
  const auto load_tiles = [&] {
    if constexpr (kMultiply)
#pragma unroll
      for (int tile = 0; tile < kProbeTiles; ++tile)
        tiles[tile].load(args.centroids, first + 16 * (kProbeTiles * warp + tile), args.centroid_count - 1);
  };
  load_tiles();
  ptx::wait_for_prior_kernel();
  ptx::launch_dependents();
  for (int64_t i = (query * slices + blockIdx.x) * kSearchThreads + threadIdx.x; i < args.zeros;
       i += int64_t{gridDim.y} * slices * kSearchThreads)
    args.zeroed[i] = 0;
  float* const all = args.by_centroid + (query * args.centroid_count + first) * tokens;
  for (int token = 0; token < tokens; token += 32) {
    const int width = min(32, tokens - token);
    if constexpr (kMultiply) {
      if (warp == 0)
        shared.factors[lane] =
            stage_query_block<__half>(shared.queries, args.queries, span_of(args.queries, query), token / 32, false)
                .factor;
      __syncthreads();
      multiply_centroids(tiles, shared);
      __syncthreads();
    }
    for (int i = threadIdx.x; i < rows * 32; i += kSearchThreads) {
      if (i % 32 >= width) continue;
      float& one = all[int64_t{i / 32} * tokens + token + i % 32];
      float& there = shared.similarities[i / 32][i % 32];
      if constexpr (kMultiply)
        one = there;
      else
        there = one;
    }
    if (!kMultiply) __syncthreads();
    for (int t = warp; t < width; t += kSearchThreads / 32) {
      Key keys[kProbeSlice / 32];
#pragma unroll
      for (int i = 0; i < kProbeSlice / 32; ++i) {
        const int row = 32 * i + lane;
        keys[i] = row < rows ? key_of(shared.similarities[row][t], first + row, true) : 0;
      }
      Key* out = args.best + ((query * tokens + token + t) * slices + blockIdx.x) * args.probes;
      for (int probe = 0; probe < args.probes; ++probe) {
        Key most = 0;
#pragma unroll
        for (int i = 0; i < kProbeSlice / 32; ++i) most = max(most, keys[i]);
        const auto high = static_cast<uint32_t>(most >> 32), top = most_of_warp(high);
        const uint32_t low = most_of_warp(high == top ? static_cast<uint32_t>(most) : 0u);
        most = static_cast<Key>(top) << 32 | low;
#pragma unroll
        for (int i = 0; i < kProbeSlice / 32; ++i) keys[i] = keys[i] == most ? 0 : keys[i];
        if (lane == 0) out[probe] = most;
      }
    }
    if (token + 32 < tokens) load_tiles();  // again: while the best are found they would take all registers
    __syncthreads();
  }
}

// Marks the centroids that a query token probes. Rows of zeros are padding.
struct MarkProbed {
  Segments queries;
  int64_t words;
  uint32_t* marks;
  __device__ __forceinline__ void operator()(int64_t row, const Key* best, int probes) const {
    const int64_t query = quotient(row, queries.extent), token = row - query * queries.extent;
    const int64_t begin = span_of(queries, query).begin + token * queries.token_stride;
    bool real = false;
    for (int64_t k = threadIdx.x; k < queries.dim; k += kMergeThreads)
      real |= load_element(queries, begin + k * queries.feature_stride) != 0.f;
    if (!__syncthreads_or(real)) return;
    for (int i = threadIdx.x; i < probes; i += kMergeThreads) {
      const int64_t centroid = id_of(best[i]);
      atomicOr(marks + query * words + centroid / 32, 1u << centroid % 32);
    }
  }
};

// Documents with a marked centroid, in any order; the others' scores are -inf, and NaN where offsets are wrong.
__global__ void __launch_bounds__(kSearchThreads)
    find_candidates(const __grid_constant__ ApproxArgs args, const uint32_t* marks, int64_t words, int32_t* candidates,
                    int32_t* counts) {
  extern __shared__ uint32_t own[];
  ptx::wait_for_prior_kernel();
  ptx::launch_dependents();
  const Segments& side = args.problem.documents;
  const int lane = threadIdx.x % 32, part = lane % kProbeLanes;
  const int64_t query = blockIdx.y;
  for (int64_t i = threadIdx.x; i < words; i += kSearchThreads) own[i] = marks[query * words + i];
  __syncthreads();
  for (int64_t first = int64_t{blockIdx.x} * kProbeDocuments; first < side.count;
       first += int64_t{gridDim.x} * kProbeDocuments) {
    const int64_t document = first + threadIdx.x / kProbeLanes;
    const Span span = span_of(side, document);
    const int longest = static_cast<int>(most_of_warp(static_cast<uint32_t>(span.length)));
    bool hit = false;
    for (int base = part; base - part < longest; base += kProbeLanes * kProbeTokens) {
      RawCode codes[kProbeTokens];
#pragma unroll
      for (int u = 0; u < kProbeTokens; ++u)
        if (base + u * kProbeLanes < span.length) codes[u].load(args.a.codes, span.first_row + base + u * kProbeLanes);
#pragma unroll
      for (int u = 0; u < kProbeTokens; ++u) {
        const uint32_t code = codes[u].known(args.a.centroid_count) ? codes[u].low : 0;
        hit |= base + u * kProbeLanes < span.length && own[code / 32] >> code % 32 & 1;
      }
    }
    const uint32_t hits = __ballot_sync(~0u, hit) >> lane / kProbeLanes * kProbeLanes & ((1u << kProbeLanes) - 1);
    const bool leads = part == 0 && document < side.count;
    if (leads && !hits)
      args.scores[query * side.count + document] = span.valid ? -INFINITY : __int_as_float(0x7fc00000);
    const uint32_t found = __ballot_sync(~0u, leads && hits);
    int place = 0;
    if (lane == 0 && found) place = atomicAdd(counts + query, __popc(found));
    place = __shfl_sync(~0u, place, 0) + __popc(found & ((1u << lane) - 1));
    if (leads && hits) candidates[query * side.count + place] = static_cast<int32_t>(document);
  }
}

// Documents that are no candidates have no key: where most have the same score, counting takes long.
struct CandidateScores {
  const float* data;
  int64_t count;
  __device__ __forceinline__ Key at(int64_t query, int64_t i) const {
    const float score = data[query * count + i];
    return score == -INFINITY ? 0 : key_of(score, i, true);
  }
};

// The pairs that are scored exactly. Where candidates ran out there is no document.
struct NamePairs {
  int64_t *queries, *documents;
  __device__ __forceinline__ void operator()(int64_t query, const Key* best, int kept) const {
    for (int i = threadIdx.x; i < kept; i += kMergeThreads) {
      queries[query * kept + i] = query;
      documents[query * kept + i] = best[i] ? id_of(best[i]) : -1;
    }
  }
};

// Their scores; -inf where there is no document.
struct PairScores {
  const float* data;
  const int64_t* documents;
  int64_t count;
  __device__ __forceinline__ Key at(int64_t query, int64_t i) const {
    const int64_t pair = query * count + i;
    return key_of(documents[pair] < 0 ? -INFINITY : data[pair], i, true);
  }
};

struct NameResults {
  const int64_t* documents;
  int64_t kept;
  float* scores;
  int64_t* ids;
  __device__ __forceinline__ void operator()(int64_t query, const Key* best, int width) const {
    for (int i = threadIdx.x; i < width; i += kMergeThreads) {
      scores[query * width + i] = score_of(best[i]);
      ids[query * width + i] = documents[query * kept + id_of(best[i])];
    }
  }
};

// Parts of the workspace.
struct SearchPlan {
  int64_t words;  // of a query's marks
  uint32_t* marks;
  int32_t* counts;
  float* by_centroid;  // [Nq, C, Lq], where it is not given
  Key* probed;
  float* coarse;        // [Nq, documents]
  int32_t* candidates;  // [Nq, documents]
  int64_t *pair_queries, *pair_documents;
  float* exact;
  char* scratch;  // of whichever launches need some
  int64_t zeroed, bytes;
};

Ranked ranked(int64_t rows, int64_t count, int64_t k) {
  Ranked out;
  out.queries = rows;
  out.documents = count;
  out.k = k;
  return out;
}

// Centroids of a slice that a query token keeps.
int64_t probes_of_slice(const Search& s) { return std::min<int64_t>(s.probes, kProbeSlice); }
int64_t slices_of(const Search& s) { return ceil_div(s.residuals.centroid_count, kProbeSlice); }
Ranked ranked_probes(const Search& s) {
  return ranked(s.problem.queries.count * s.problem.queries.extent, slices_of(s) * probes_of_slice(s), s.probes);
}

// Pairs of a query and a document each.
Problem listed(const Search& s, const SearchPlan& plan) {
  Problem problem = s.problem;
  problem.pairing = Pairing::list;
  problem.pairs = problem.queries.count * s.kept;
  problem.query_ids = {plan.pair_queries, 1, true};
  problem.document_ids = {plan.pair_documents, 1, true};
  return problem;
}

SearchPlan search_plan(const Search& s, char* workspace) {
  SearchPlan plan{};
  const int64_t queries = s.problem.queries.count, tokens = queries * s.problem.queries.extent;
  const int64_t documents = s.problem.documents.count;
  int64_t used = 0;
  const auto take = [&](auto*& part, int64_t count) {
    part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(workspace + used);
    used += ceil_div(count * static_cast<int64_t>(sizeof(*part)), 256) * 256;
  };
  plan.words = ceil_div(s.residuals.centroid_count, 32);
  take(plan.marks, queries * plan.words);
  take(plan.counts, queries);
  plan.zeroed = used;
  take(plan.by_centroid, s.by_centroid ? 0 : tokens * s.residuals.centroid_count);
  take(plan.probed, tokens * slices_of(s) * probes_of_slice(s));
  take(plan.coarse, queries * documents);
  take(plan.candidates, queries * documents);
  take(plan.pair_queries, queries * s.kept);
  take(plan.pair_documents, queries * s.kept);
  take(plan.exact, queries * s.kept);
  const int64_t scratch = std::max(
      {rank_workspace(ranked_probes(s)), rank_workspace(ranked(queries, documents, s.kept)),
       residual_workspace(listed(s, plan), s.residuals, s.path), rank_workspace(ranked(queries, s.kept, s.top_k))});
  take(plan.scratch, scratch);
  plan.bytes = used;
  return plan;
}

}  // namespace

bool search_multiplies(const Search& s) {
  const Residuals& r = s.residuals;
  return r.centroid_type == DType::f16 && s.problem.queries.dtype != DType::f32 && r.dim == kMaxResidualDim &&
         reinterpret_cast<uintptr_t>(r.centroids) % 16 == 0;
}

bool search_takes(const Search& s) {
  return ceil_div(s.residuals.centroid_count, 32) * 4 <= kMostMarks && s.problem.queries.count <= 65535 &&
         s.problem.documents.count <= INT32_MAX && s.probes <= kMostRanked && s.kept <= kMostRanked;
}

int64_t search_workspace(const Search& s) { return search_plan(s, nullptr).bytes; }

void search(const Search& s, float* scores, int64_t* ids, void* workspace, cudaStream_t stream) {
  const SearchPlan plan = search_plan(s, static_cast<char*>(workspace));
  const Segments& queries = s.problem.queries;
  const int64_t documents = s.problem.documents.count;
  const float* const by_centroid = s.by_centroid ? s.by_centroid : plan.by_centroid;
  const auto rows = static_cast<unsigned>(queries.count);
  const ProbeArgs probe{queries,
                        static_cast<const __half*>(s.residuals.centroids),
                        const_cast<float*>(by_centroid),
                        s.residuals.centroid_count,
                        static_cast<int>(probes_of_slice(s)),
                        plan.probed,
                        plan.marks,
                        plan.zeroed / 4};
  launch_after("probe_slices", s.by_centroid ? &probe_slices<false> : &probe_slices<true>,
               dim3(static_cast<unsigned>(slices_of(s)), rows), kSearchThreads, 0, stream, probe);
  const Ranked probes = ranked_probes(s);
  rank_into(Keys{plan.probed, probes.documents}, probes, MarkProbed{queries, plan.words, plan.marks}, plan.scratch,
            stream);

  ApproxArgs args{s.problem, {}, plan.coarse, plan.candidates, plan.counts};
  args.a.codes = s.residuals.codes;
  args.a.centroid_count = s.residuals.centroid_count;
  args.a.centroid_scores = by_centroid;
  args.problem.queries.dim = queries.extent;
  // Each query has as many rows of blocks as fill the GPU, or a few.
  const int64_t share = std::max<int64_t>(16, ceil_div(8 * current_device().sms, queries.count));
  const auto columns = [&](int64_t wanted) { return static_cast<unsigned>(std::min(wanted, share)); };
  launch_after("find_candidates", &find_candidates, dim3(columns(ceil_div(documents, kProbeDocuments)), rows),
               kSearchThreads, static_cast<size_t>(plan.words) * 4, stream, args, plan.marks, plan.words,
               plan.candidates, plan.counts);
  const bool wide =
      queries.extent % 4 == 0 && queries.extent <= 128 && reinterpret_cast<uintptr_t>(by_centroid) % 16 == 0;
  launch_after("approx_scores", wide ? &approx_scores<4, 1, true> : &approx_scores<1, 1, true>,
               dim3(columns(ceil_div(documents, kApproxThreads<1> / 32)), rows), kApproxThreads<1>, 0, stream, args);

  rank_into(CandidateScores{plan.coarse, documents}, ranked(queries.count, documents, s.kept),
            NamePairs{plan.pair_queries, plan.pair_documents}, plan.scratch, stream);
  residual_forward(listed(s, plan), s.residuals, s.path, plan.exact, nullptr, plan.scratch, stream);
  rank_into(PairScores{plan.exact, plan.pair_documents, s.kept}, ranked(queries.count, s.kept, s.top_k),
            NameResults{plan.pair_documents, s.kept, scores, ids}, plan.scratch, stream);
}

}  // namespace cuda
}  // namespace maxsim
