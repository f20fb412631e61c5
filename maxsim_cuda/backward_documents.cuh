// The documents' gradient: a block owns a slice of a document's tokens. It collects the query tokens that the slice
// won, sorts them by winner, keeping their order, and deals the sorted list out evenly to its half warps, so that a
// token that wins everything costs no more than many that win once. Every row is summed in one order and written once.
#pragma once

#include "backward_rows.cuh"
#include "backward_sort.cuh"

namespace maxsim {
namespace cuda {

// Hits are winners that lie in the slice. `Capacity` of them are summed in one go; a document that can have more
// sums its slices in shared memory.
template <int Threads, int Looks, int Capacity, int Tokens, int SummedTokens, int Blocks>
struct DocumentTile {
  static constexpr int kThreads = Threads;
  static constexpr int kGroups = Threads / kRowLanes;
  static constexpr int kLooks = Looks;             // candidates a thread looks at in one window
  static constexpr int kWindow = Looks * Threads;  // between two barriers
  static constexpr int kCapacity = Capacity;       // hits
  static constexpr int kTokens = Tokens;           // of a slice at most
  static constexpr int kSummedTokens = SummedTokens;
  static constexpr int kBlocks = Blocks;  // an SM, which bounds the registers
  static constexpr bool kSums = SummedTokens > 0;
  static_assert(Looks * Threads <= Capacity, "one window may hit throughout");
  static_assert(!kSums || SummedTokens == Tokens, "there is a sum for every token");
};
// One query with a document of its own: most rows are zeros, and a warp by itself never waits for another.
using FewHits = DocumentTile<32, 2, 64, 256, 0, 32>;
// What a small batch wins fits at once, so that slices may be long.
using SomeHits = DocumentTile<256, 2, 1024, 1024, 0, 3>;
// 32 KB of sums: three blocks an SM, and one on sm_75.
using ManyHits = DocumentTile<256, 2, 1024, 64, 64, 3>;

template <typename T>
struct DocumentShared {
  Hit hits[T::kCapacity];
  HitSort<T::kThreads, T::kCapacity, T::kTokens> sort;
  float carry[T::kGroups][kRowFeatures];
  int carry_token[T::kGroups];
  int looks[2][T::kThreads / 32];
  float dots[T::kTokens];    // normalising over more than one chunk of features
  bool touched[T::kTokens];  // a row that nothing won is exactly zero, whatever it holds
  float sums[T::kSums ? T::kSummedTokens : 1][kRowFeatures];
};
static_assert(sizeof(DocumentShared<ManyHits>) <= 64 * 1024, "the shared memory of an sm_75 block");

template <typename T, typename Rows>
struct DocumentSlice {
  static constexpr int kNoToken = -1, kEmptyShare = -2;
  static constexpr int64_t kNoRow = -1;

  const BackwardArgs& args;
  const Problem& problem;
  const Segments& own;
  DocumentShared<T>& shared;
  RowGroup group;
  Projection projection;
  int64_t segment = 0, begin = 0;       // begin: element offset of the slice
  int64_t first = 0;                    // token of the document where the slice starts
  int64_t norm_row = 0, first_row = 0;  // of the slice in the norms and in the gradient
  int tokens = 0;                       // of the slice that the document has
  int64_t k = 0;                        // of this lane, in this chunk
  int pass = 0;

  __device__ DocumentSlice(const BackwardArgs& args, DocumentShared<T>& shared)
      : args(args), problem(args.problem), own(args.problem.documents), shared(shared), projection(args.problem) {}

  // The sum of a token's row is complete for this chunk.
  __device__ __forceinline__ void finish_row(int token, const LaneSum& sum) {
    const float inverse = problem.normalize ? args.document_norms[norm_row + token] : 1.f;
    write_row(args, begin + token * own.token_stride, first_row + token, k, pass, inverse, &shared.dots[token],
              {sum[0], sum[1], sum[2], sum[3]}, {sum[4], sum[5], sum[6], sum[7]});
  }

  // Out of line: called from several places, once for all that a row won.
  __device__ __noinline__ static void write_row(const BackwardArgs& args, int64_t at, int64_t row, int64_t k, int pass,
                                                float inverse, float* dot_of_row, float4 low, float4 high) {
    const Segments& own = args.problem.documents;
    const Projection projection(args.problem);
    LaneSum sum = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    if (args.problem.normalize) {
      const RowGroup group;
      float dot;
      if (projection.passes == 1) {
        dot = group.sum(lane_dot(own, at, k, sum));
      } else if (!projection.writes(pass)) {
        const float part = group.sum(lane_dot(own, at, k, sum));
        if (group.lane == 0) *dot_of_row += part;
        return;
      } else {
        dot = *dot_of_row;
      }
      project(own, at, k, inverse, dot, sum);
    }
    store_row(args.grad_documents, own, row, k, sum);
  }

  // One run of equal winners is summed up: it goes out, or to the sums of the slice.
  __device__ __forceinline__ void finish_run(int token, LaneSum& sum, bool only) {
    if (!T::kSums || only) return finish_row(token, sum);
    float* to = shared.sums[token];
#pragma unroll
    for (int i = 0; i < kLaneFeatures; ++i) to[group.lane + i * kRowLanes] += sum[i];
  }

  __device__ __forceinline__ void park(int token, const LaneSum& sum) {
#pragma unroll
    for (int i = 0; i < kLaneFeatures; ++i) shared.carry[group.index][group.lane + i * kRowLanes] = sum[i];
    if (group.lane == 0) shared.carry_token[group.index] = token;
  }

  // Adds up `hits` collected query tokens. `only`: they are all that the slice has, so rows go out at once.
  __device__ __forceinline__ void sum_hits(int hits, bool only) {
    resolve(hits);
    const uint16_t* order = shared.sort.run(shared.hits, hits, tokens);
    const int from = hits * group.index / T::kGroups, to = hits * (group.index + 1) / T::kGroups;
    int current = from < to ? shared.hits[order[from]].token : kNoToken;
    // A run that began in an earlier share is finished there.
    bool foreign = from < to && from > 0 && shared.hits[order[from - 1]].token == current;
    if (group.lane == 0) shared.carry_token[group.index] = from < to ? kNoToken : kEmptyShare;
    LaneSum sum = {};
#pragma unroll 1
    for (int i = from; i < to; i += Rows::kBatch) {
      typename Rows::Raw raw[Rows::kBatch];
      float factor[Rows::kBatch];
      int token[Rows::kBatch];
#pragma unroll
      for (int u = 0; u < Rows::kBatch; ++u) {
        const bool present = i + u < to;
        const Hit hit = shared.hits[order[present ? i + u : to - 1]];
        raw[u] = Rows::fetch(problem.queries, hit.row, k, present && hit.row != kNoRow);
        factor[u] = present ? hit.factor : 0.f;
        token[u] = hit.token;
      }
#pragma unroll
      for (int u = 0; u < Rows::kBatch; ++u) {
        if (token[u] != current) {
          if (foreign)
            park(current, sum);
          else
            finish_run(current, sum, only);
          foreign = false;
          current = token[u];
#pragma unroll
          for (int j = 0; j < kLaneFeatures; ++j) sum[j] = 0.f;
        }
        Rows::add(raw[u], factor[u], sum);
      }
    }
    if (foreign) park(current, sum);
    __syncthreads();
    if (from < to && !foreign) {
      for (int next = group.index + 1; next < T::kGroups; ++next) {
        const int token = shared.carry_token[next];
        if (token == kEmptyShare) continue;
        if (token != current) break;
#pragma unroll
        for (int i = 0; i < kLaneFeatures; ++i) sum[i] += shared.carry[next][group.lane + i * kRowLanes];
      }
      finish_run(current, sum, only);
    }
    __syncthreads();
  }

  // Rows of the slice that nothing won; those behind the document's end too, where the side is padded.
  __device__ __forceinline__ void write_zeros(int rows) {
    if (k >= own.dim) return;
    const int64_t row_bytes = own.dim * element_size(own.dtype);
    char* out =
        static_cast<char*>(args.grad_documents) + (first_row + group.index) * row_bytes + k * element_size(own.dtype);
    const int64_t left = own.dim - k;
    const int bytes = static_cast<int>((left < kLaneFeatures ? left : kLaneFeatures) * element_size(own.dtype));
    const bool vectors = own.dim % kLaneFeatures == 0;
    for (int token = group.index; token < rows; token += T::kGroups, out += T::kGroups * row_bytes) {
      if (token < tokens && shared.touched[token]) continue;
      if (vectors) {
        *reinterpret_cast<uint4*>(out) = {};
        if (bytes > 16) *reinterpret_cast<uint4*>(out + 16) = {};
      } else {
        for (int i = 0; i < bytes; i += 2) *reinterpret_cast<uint16_t*>(out + i) = 0;
      }
    }
  }

  __device__ __forceinline__ void write_sums() {
    for (int token = group.index; token < tokens; token += T::kGroups) {
      if (!shared.touched[token]) continue;
      LaneSum sum;
#pragma unroll
      for (int i = 0; i < kLaneFeatures; ++i) sum[i] = shared.sums[token][group.lane + i * kRowLanes];
      finish_row(token, sum);
    }
  }

  // A candidate is one query token of one pair of the document; candidates are numbered pair by pair.
  struct Step {
    int64_t pairs;
    int slots;
  };
  struct Candidate {
    int64_t n;
    int slot;
  };
  __device__ __forceinline__ Step step_of(int candidates) const {
    const int64_t pairs = quotient(candidates, problem.argmax_width);
    return {pairs, static_cast<int>(candidates - pairs * problem.argmax_width)};
  }
  __device__ __forceinline__ Candidate advance(Candidate c, Step by) const {
    c.n += by.pairs;
    c.slot += by.slots;
    if (c.slot >= problem.argmax_width) c.slot -= static_cast<int>(problem.argmax_width), ++c.n;
    return c;
  }

  // The winners of this thread's candidates in one window, as tokens of the slice. A warp's candidates are neighbours.
  struct Window {
    int token[T::kLooks];
  };
  __device__ __forceinline__ Window look(Candidate c, int64_t end, Step next) const {
    Window window;
#pragma unroll
    for (int j = 0; j < T::kLooks; ++j) {
      window.token[j] = kNoToken;
      if (c.n < end) {
        const int64_t pair = nth_pair(problem, args.by_document, false, segment, c.n);
        const int64_t token = args.argmax[pair * problem.argmax_width + c.slot] - first;
        if (token >= 0 && token < tokens) window.token[j] = static_cast<int>(token);
      }
      c = advance(c, next);
    }
    return window;
  }

  // Appends the window's hits in the order of their numbers; how many there are then.
  __device__ __forceinline__ int append(Candidate c, Step next, const Window& window, int filled, int parity) {
    constexpr int kWarps = T::kThreads / 32;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned votes[T::kLooks];
    int own_total = 0;
#pragma unroll
    for (int j = 0; j < T::kLooks; ++j) {
      votes[j] = __ballot_sync(~0u, window.token[j] != kNoToken);
      own_total += __popc(votes[j]);
    }
    if (lane == 0) shared.looks[parity][warp] = own_total;
    __syncthreads();
    int place = filled;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const int count = shared.looks[parity][w];
      if (w < warp) place += count;
      filled += count;
    }
#pragma unroll
    for (int j = 0; j < T::kLooks; ++j) {
      if (window.token[j] != kNoToken) {
        const int at = place + __popc(votes[j] & ((1u << lane) - 1));
        shared.hits[at] = {c.n, __int_as_float(c.slot), window.token[j]};
        shared.touched[window.token[j]] = true;
      }
      place += __popc(votes[j]);
      c = advance(c, next);
    }
    return filled;
  }

  // From candidates to rows and factors: every lane has a hit here, where hardly any candidate was one.
  __device__ __forceinline__ void resolve(int hits) {
    for (int i = threadIdx.x; i < hits; i += T::kThreads) {
      Hit hit = shared.hits[i];
      const int64_t n = hit.row;
      const int slot = __float_as_int(hit.factor);
      const Span query = span_of(problem.queries, nth_partner(problem, args.by_document, false, segment, n));
      hit.row = kNoRow;
      hit.factor = 0.f;
      if (slot < query.length) {  // else there is no such token, whatever the argmax says
        hit.row = query.begin + slot * problem.queries.token_stride;
        hit.factor = args.grad_scores[nth_pair(problem, args.by_document, false, segment, n)];
        if (problem.normalize) hit.factor *= args.query_norms[query.first_row + slot];
      }
      shared.hits[i] = hit;
    }
  }

  // All hits of the slice, for one chunk of features in one pass.
  __device__ __forceinline__ void collect_and_sum(PairRange range, int rows) {
    const Step look_step = step_of(32), window_step = step_of(T::kWindow);
    Candidate c = advance({range.from, 0}, step_of(threadIdx.x / 32 * (T::kLooks * 32) + threadIdx.x % 32));
    int64_t windows = tokens ? ((range.to - range.from) * problem.argmax_width + T::kWindow - 1) / T::kWindow : 0;
    bool summed = false;
    int filled = 0, parity = 0;
    Window window = look(c, windows ? range.to : 0, look_step);
    if (windows == 0 && projection.writes(pass)) write_zeros(rows);
    for (; windows > 0; --windows, parity ^= 1) {
      const Candidate later = advance(c, window_step);
      const Window next = look(later, range.to, look_step);
      filled = append(c, look_step, window, filled, parity);
      c = later;
      window = next;
      const bool last = windows == 1;
      if (!last && (!T::kSums || filled <= T::kCapacity - T::kWindow)) continue;
      if (T::kSums && !last && !summed) {
        for (int i = threadIdx.x; i < T::kSummedTokens * kRowFeatures; i += T::kThreads) shared.sums[0][i] = 0.f;
        summed = true;
      }
      __syncthreads();
      if (last && projection.writes(pass)) write_zeros(rows);
      if (filled) sum_hits(filled, last && !summed);
      filled = 0;
    }
    if (T::kSums && summed) write_sums();
    __syncthreads();
  }

  __device__ __forceinline__ void run(int64_t own_segment, int64_t slice_first, int slice_tokens) {
    segment = own_segment;
    first = slice_first;
    const Span span = span_of(own, segment);
    const int64_t left = span.length - first;
    tokens = static_cast<int>(left < 0 ? 0 : left < slice_tokens ? left : slice_tokens);
    begin = span.begin + first * own.token_stride;
    norm_row = first_row = span.first_row + first;
    int rows = tokens;
    if (!own.packed()) {
      const int64_t row_left = own.extent - first;
      rows = static_cast<int>(row_left < slice_tokens ? row_left : slice_tokens);
      first_row = segment * own.extent + first;
    }
    for (int i = threadIdx.x; i < tokens; i += T::kThreads) {
      shared.touched[i] = false;
      shared.dots[i] = 0.f;
    }
    __syncthreads();
    const PairRange range = pairs_of(problem, args.by_document, false, segment);
    for (pass = 0; pass < projection.passes; ++pass)
      for (int64_t chunk = 0; chunk < projection.chunks; ++chunk) {
        k = chunk * kRowFeatures + group.lane * kLaneFeatures;
        collect_and_sum(range, rows);
      }
  }
};

// Blocks (document, slice); a block takes further ones where the grid is smaller than the work.
template <typename T, typename Rows>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    backward_documents(const __grid_constant__ BackwardArgs args, int slice_tokens) {
  extern __shared__ __align__(16) unsigned char memory[];
  DocumentSlice<T, Rows> slice(args, *reinterpret_cast<DocumentShared<T>*>(memory));
  const Segments& own = args.problem.documents;
  for (int64_t segment = blockIdx.x; segment < own.count; segment += gridDim.x) {
    const int64_t rows = own.packed() ? span_of(own, segment).length : own.extent;
    for (int64_t first = int64_t{blockIdx.y} * slice_tokens; first < rows; first += int64_t{gridDim.y} * slice_tokens)
      slice.run(segment, first, slice_tokens);
  }
}

}  // namespace cuda
}  // namespace maxsim
