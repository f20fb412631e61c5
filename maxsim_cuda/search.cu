// PLAID's search as a row of launches: the probed centroids' marks, the documents that have one, their approximate
// scores, the best of them exactly, and the best of those.
#include "search.h"

#include <algorithm>
#include <type_traits>

#include "approx.cuh"
#include "check.h"
#include "forward_args.cuh"
#include "ranking.h"
#include "residual_launch.h"

namespace maxsim {
namespace cuda {
namespace {

constexpr int kSearchThreads = 256;
// Lanes that share a document, and tokens that each of them asks for at once.
constexpr int kProbeLanes = 8, kProbeTokens = 4;
constexpr int kProbeDocuments = kSearchThreads / kProbeLanes;
constexpr int64_t kMostMarks = 48 << 10;  // bytes of shared memory

// What a key says (ranking.h).
__device__ __forceinline__ int64_t id_of(int64_t key) { return 0xffffffff - (key & 0xffffffff); }
__device__ __forceinline__ float score_of(int64_t key) {
  const auto order = static_cast<int32_t>(key >> 32);
  return __int_as_float(order ^ (order >> 31 & 0x7fffffff));
}

// A warp marks the centroids that one query token probes. Rows of zeros are padding.
__global__ void __launch_bounds__(kSearchThreads)
    mark_probed(const __grid_constant__ Segments queries, const int64_t* keys, int64_t probes, int64_t words,
                uint32_t* marks) {
  const int lane = threadIdx.x % 32;
  const int64_t rows = queries.count * queries.extent;
  for (int64_t row = (int64_t{blockIdx.x} * kSearchThreads + threadIdx.x) / 32; row < rows;
       row += int64_t{gridDim.x} * (kSearchThreads / 32)) {
    const int64_t query = quotient(row, queries.extent), token = row - query * queries.extent;
    const int64_t begin = span_of(queries, query).begin + token * queries.token_stride;
    bool real = false;
    for (int64_t k = lane; k < queries.dim; k += 32)
      real |= load_element(queries, begin + k * queries.feature_stride) != 0.f;
    if (!__any_sync(~0u, real)) continue;
    for (int64_t i = lane; i < probes; i += 32) {
      const int64_t centroid = id_of(keys[row * probes + i]);
      atomicOr(marks + query * words + centroid / 32, 1u << centroid % 32);
    }
  }
}

// Documents with a marked centroid, in any order; the others' scores are -inf, and NaN where offsets are wrong.
__global__ void __launch_bounds__(kSearchThreads)
    find_candidates(const __grid_constant__ ApproxArgs args, const uint32_t* marks, int64_t words, int32_t* candidates,
                    int32_t* counts) {
  extern __shared__ uint32_t own[];
  const Segments& side = args.problem.documents;
  const int lane = threadIdx.x % 32, part = lane % kProbeLanes;
  const int64_t query = blockIdx.y;
  for (int64_t i = threadIdx.x; i < words; i += kSearchThreads) own[i] = marks[query * words + i];
  __syncthreads();
  for (int64_t first = int64_t{blockIdx.x} * kProbeDocuments; first < side.count;
       first += int64_t{gridDim.x} * kProbeDocuments) {
    const int64_t document = first + threadIdx.x / kProbeLanes;
    const Span span = span_of(side, document);
    const int longest = __reduce_max_sync(~0u, span.length);
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

// The pairs that are scored exactly. Where candidates ran out there is no document.
__global__ void __launch_bounds__(kSearchThreads)
    name_pairs(const int64_t* keys, int64_t queries, int64_t kept, int64_t* pair_queries, int64_t* pair_documents) {
  for (int64_t i = int64_t{blockIdx.x} * kSearchThreads + threadIdx.x; i < queries * kept;
       i += int64_t{gridDim.x} * kSearchThreads) {
    pair_queries[i] = quotient(i, kept);
    pair_documents[i] = score_of(keys[i]) == -INFINITY ? -1 : id_of(keys[i]);
  }
}

__global__ void __launch_bounds__(kSearchThreads)
    leave_out(const int64_t* pair_documents, int64_t pairs, float* scores) {
  for (int64_t i = int64_t{blockIdx.x} * kSearchThreads + threadIdx.x; i < pairs;
       i += int64_t{gridDim.x} * kSearchThreads)
    if (pair_documents[i] < 0) scores[i] = -INFINITY;
}

__global__ void __launch_bounds__(kSearchThreads)
    name_results(const int64_t* keys, const int64_t* pair_documents, int64_t queries, int64_t kept, int64_t width,
                 float* scores, int64_t* ids) {
  for (int64_t i = int64_t{blockIdx.x} * kSearchThreads + threadIdx.x; i < queries * width;
       i += int64_t{gridDim.x} * kSearchThreads) {
    scores[i] = score_of(keys[i]);
    ids[i] = pair_documents[quotient(i, width) * kept + id_of(keys[i])];
  }
}

// Parts of the workspace.
struct SearchPlan {
  int64_t words;  // of a query's marks
  uint32_t* marks;
  int32_t* counts;
  int64_t* probed;      // keys
  float* coarse;        // [Nq, documents]
  int32_t* candidates;  // [Nq, documents]
  int64_t* best;        // keys
  int64_t *pair_queries, *pair_documents;
  float* exact;
  int64_t* last;  // keys
  char* scratch;  // of whichever launches need some
  int64_t zeroed, bytes;
};

Ranked ranked(const float* scores, int64_t rows, int64_t count, int64_t k) {
  Ranked out;
  out.scores = scores;
  out.queries = rows;
  out.documents = count;
  out.k = k;
  return out;
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
  take(plan.probed, tokens * s.probes);
  take(plan.coarse, queries * documents);
  take(plan.candidates, queries * documents);
  take(plan.best, queries * s.kept);
  take(plan.pair_queries, queries * s.kept);
  take(plan.pair_documents, queries * s.kept);
  take(plan.exact, queries * s.kept);
  take(plan.last, queries * s.top_k);
  const int64_t scratch = std::max({rank_workspace(ranked(s.by_token, tokens, s.residuals.centroid_count, s.probes)),
                                    rank_workspace(ranked(plan.coarse, queries, documents, s.kept)),
                                    residual_workspace(listed(s, plan), s.residuals, s.path),
                                    rank_workspace(ranked(plan.exact, queries, s.kept, s.top_k))});
  take(plan.scratch, scratch);
  plan.bytes = used;
  return plan;
}

}  // namespace

bool search_takes(const Search& s) {
  return ceil_div(s.residuals.centroid_count, 32) * 4 <= kMostMarks && s.problem.queries.count <= 65535 &&
         s.problem.documents.count <= INT32_MAX && s.probes <= kMostRanked && s.kept <= kMostRanked;
}

int64_t search_workspace(const Search& s) { return search_plan(s, nullptr).bytes; }

void search(const Search& s, float* scores, int64_t* ids, void* workspace, cudaStream_t stream) {
  const SearchPlan plan = search_plan(s, static_cast<char*>(workspace));
  const int64_t queries = s.problem.queries.count, tokens = queries * s.problem.queries.extent;
  const int64_t documents = s.problem.documents.count, pairs = queries * s.kept;
  const auto blocks = [](int64_t threads) { return grid(ceil_div(threads, kSearchThreads), 8); };
  check(cudaMemsetAsync(plan.marks, 0, static_cast<size_t>(plan.zeroed), stream), "search marks");
  rank(ranked(s.by_token, tokens, s.residuals.centroid_count, s.probes), plan.probed, plan.scratch, stream);
  mark_probed<<<blocks(tokens * 32), kSearchThreads, 0, stream>>>(s.problem.queries, plan.probed, s.probes, plan.words,
                                                                  plan.marks);
  check(cudaGetLastError(), "mark_probed");

  ApproxArgs args{s.problem, {}, plan.coarse, plan.candidates, plan.counts};
  args.a.codes = s.residuals.codes;
  args.a.centroid_count = s.residuals.centroid_count;
  args.a.centroid_scores = s.by_centroid;
  args.problem.queries.dim = s.problem.queries.extent;
  // Each query has as many rows of blocks as fill the GPU, or a few.
  const auto rows = static_cast<unsigned>(queries);
  const int64_t share = std::max<int64_t>(16, ceil_div(8 * current_device().sms, queries));
  const auto columns = [&](int64_t wanted) { return static_cast<unsigned>(std::min(wanted, share)); };
  find_candidates<<<dim3(columns(ceil_div(documents, kProbeDocuments)), rows), kSearchThreads,
                    static_cast<size_t>(plan.words) * 4, stream>>>(args, plan.marks, plan.words, plan.candidates,
                                                                   plan.counts);
  check(cudaGetLastError(), "find_candidates");
  const bool wide = args.problem.queries.dim % 4 == 0 && args.problem.queries.dim <= 128 &&
                    reinterpret_cast<uintptr_t>(s.by_centroid) % 16 == 0;
  const auto approx = wide ? approx_scores<4, 1, true> : approx_scores<1, 1, true>;
  approx<<<dim3(columns(ceil_div(documents, kApproxThreads<1> / 32)), rows), kApproxThreads<1>, 0, stream>>>(args);
  check(cudaGetLastError(), "approx_scores");

  rank(ranked(plan.coarse, queries, documents, s.kept), plan.best, plan.scratch, stream);
  name_pairs<<<blocks(pairs), kSearchThreads, 0, stream>>>(plan.best, queries, s.kept, plan.pair_queries,
                                                           plan.pair_documents);
  check(cudaGetLastError(), "name_pairs");
  residual_forward(listed(s, plan), s.residuals, s.path, plan.exact, nullptr, plan.scratch, stream);
  leave_out<<<blocks(pairs), kSearchThreads, 0, stream>>>(plan.pair_documents, pairs, plan.exact);
  check(cudaGetLastError(), "leave_out");
  rank(ranked(plan.exact, queries, s.kept, s.top_k), plan.last, plan.scratch, stream);
  name_results<<<blocks(queries * s.top_k), kSearchThreads, 0, stream>>>(plan.last, plan.pair_documents, queries,
                                                                         s.kept, s.top_k, scores, ids);
  check(cudaGetLastError(), "name_results");
}

}  // namespace cuda
}  // namespace maxsim
