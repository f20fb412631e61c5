// The documents' gradient: a block owns a slice of a document's tokens. It collects the query tokens that the slice
// won, sorts them by winner, keeping their order, and deals the sorted list out evenly to its half warps, so that a
// token that wins everything costs no more than many that win once. Every row is summed in one order and written once.
#pragma once

#include "backward_rows.cuh"
#include "backward_sort.cuh"
#include "ptx/dependent_launch.cuh"

namespace maxsim {
namespace cuda {

// Hits are query tokens whose winner lies in the slice.
template <int Threads, int Capacity, int Tokens, int Blocks, bool Zeroed>
struct DocumentTile {
  static constexpr int kThreads = Threads;
  static constexpr int kGroups = Threads / kRowLanes;
  static constexpr int kWarps = Threads / 32;
  static constexpr int kCapacity = Capacity;  // hits that are summed in one go
  static constexpr int kTokens = Tokens;      // of a slice at most
  static constexpr int kBlocks = Blocks;      // an SM, which bounds the registers
  static constexpr bool kZeroed = Zeroed;     // rows that nothing won are zeros before the kernel starts
};
// One query with a document of its own: most rows are zeros, which a plain fill writes faster, and the larger the
// slice, the less is looked up. A warp by itself never waits for another.
using FewHits = DocumentTile<32, 64, 512, 24, true>;
// A batch of queries: 60 KB, three blocks an SM, and one on sm_75. A slice is meant to have 2700 hits, so that few
// overflow; what a document's candidates cost is paid once for each slice.
using ManyHits = DocumentTile<256, 4096, 512, 3, false>;

template <typename T>
struct DocumentShared {
  using Sort = HitSort<T::kThreads, T::kCapacity, T::kTokens>;
  Sort sort;
  uint32_t number[T::kCapacity];  // of the candidate that hit
  union {
    typename Sort::Starts starts;           // while the hits are sorted
    float carry[T::kGroups][kRowFeatures];  // while they are summed
  };
  int carry_token[T::kGroups];
  int64_t next[T::kWarps];   // where each warp goes on to look
  float dots[T::kTokens];    // normalising over more than one chunk of features
  bool touched[T::kTokens];  // a row that nothing won is exactly zero, whatever it holds
  float sum[kRowFeatures];   // of a token that alone has more hits than fit
};
static_assert(sizeof(DocumentShared<ManyHits>) <= 63 * 1024, "the shared memory of an sm_75 block");

template <typename T, typename Rows>
struct DocumentSlice {
  static constexpr int kNoToken = -1, kEmptyShare = -2;

  const BackwardArgs& args;
  const Problem& problem;
  const Segments& own;
  DocumentShared<T>& shared;
  RowGroup group;
  Projection projection;
  int64_t segment = 0;
  PairRange range{0, 0};
  int64_t first = 0;                               // token of the document where the slice starts
  int64_t begin = 0, norm_row = 0, first_row = 0;  // of the slice in the document, the norms and the gradient
  int tokens = 0;                                  // of the slice that the document has
  int64_t k = 0;                                   // of this lane, in this chunk
  int pass = 0;
  bool overflows = false;  // one token, whose hits are summed in several goes

  __device__ DocumentSlice(const BackwardArgs& args, DocumentShared<T>& shared)
      : args(args), problem(args.problem), own(args.problem.documents), shared(shared), projection(args.problem) {}

  // Collecting. A candidate is one query token of one of the document's pairs, numbered pair by pair; a unit is kStep
  // of them that lie together. Warps look through neighbouring shares of the units, 128 candidates at a time, and
  // collect into segments of their own.

  struct Cursor {
    int64_t n;
    int slot;  // in units
  };
  struct Look {
    int winner[4];
  };
  template <int kStep>
  __device__ __forceinline__ Look look(Cursor& c, int64_t unit, int64_t end) const {
    const int width = static_cast<int>(problem.argmax_width) / kStep, step_n = 32 / width;
    Look out = {{-1, -1, -1, -1}};
#pragma unroll
    for (int i = 0; i < 4; i += kStep, unit += 32) {
      if (unit < end) {
        const int64_t pair = nth_pair(problem, args.by_document, false, segment, range.from + c.n);
        const int32_t* from = args.argmax + pair * problem.argmax_width + c.slot * kStep;
        if constexpr (kStep == 4) {
          const int4 four = __ldg(reinterpret_cast<const int4*>(from));
          out = {{four.x, four.y, four.z, four.w}};
        } else {
          out.winner[i] = __ldg(from);
        }
      }
      c.n += step_n;
      c.slot += 32 - step_n * width;
      if (c.slot >= width) c.slot -= width, ++c.n;
    }
    return out;
  }

  // Goes on from `next` until all candidates have been looked at, or the segment might overflow.
  template <int kStep>
  __device__ __forceinline__ void collect(int64_t units) {
    using Sort = typename DocumentShared<T>::Sort;
    constexpr int kUnits = 128 / kStep;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, base = warp * Sort::kSegment;
    const int64_t end = units * (warp + 1) / T::kWarps, width = problem.argmax_width / kStep;
    int64_t at = shared.next[warp];
    Cursor c;
    c.n = quotient(at + lane, width);
    c.slot = static_cast<int>(at + lane - c.n * width);
    int filled = 0;
    Look now = look<kStep>(c, at + lane, end);
    while (at < end && filled + min(int64_t{kUnits}, end - at) * kStep <= Sort::kSegment) {
      const uint32_t number = static_cast<uint32_t>((at + lane) * kStep);
      at += kUnits;
      const Look next = look<kStep>(c, at + lane, end);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = now.winner[i] - static_cast<int>(first);
        const bool hit = now.winner[i] >= 0 && static_cast<unsigned>(token) < static_cast<unsigned>(tokens);
        const unsigned votes = __ballot_sync(~0u, hit);
        if (hit) {
          const int place = base + filled + __popc(votes & ((1u << lane) - 1));
          shared.sort.token[place] = static_cast<uint16_t>(token);
          shared.number[place] = number + i * (kStep == 4 ? 1 : 32);
          shared.touched[token] = true;
        }
        filled += __popc(votes);
      }
      now = next;
    }
    __syncwarp();
    if (lane == 0) {
      shared.next[warp] = at;
      shared.sort.count[warp] = filled;
    }
  }

  __device__ __forceinline__ bool in_fours() const {
    return problem.argmax_width % 4 == 0 && reinterpret_cast<uintptr_t>(args.argmax) % 16 == 0;
  }
  __device__ __forceinline__ int64_t units() const {
    return tokens ? (range.to - range.from) * problem.argmax_width / (in_fours() ? 4 : 1) : 0;
  }

  __device__ __forceinline__ void restart() {
    if (threadIdx.x < T::kWarps) shared.next[threadIdx.x] = units() * threadIdx.x / T::kWarps;
    for (int i = threadIdx.x; i < kRowFeatures; i += T::kThreads) shared.sum[i] = 0.f;
    __syncthreads();
  }

  // Whether every candidate has been looked at.
  __device__ __forceinline__ bool collect_hits() {
    const int warp = threadIdx.x / 32;
    if (in_fours())
      collect<4>(units());
    else
      collect<1>(units());
    return __syncthreads_and(shared.next[warp] >= units() * (warp + 1) / T::kWarps);
  }

  // Summing.

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

  // One run of equal winners is summed up.
  __device__ __forceinline__ void finish_run(int token, LaneSum& sum) {
    if (!overflows) return finish_row(token, sum);
#pragma unroll
    for (int i = 0; i < kLaneFeatures; ++i) shared.sum[group.lane + i * kRowLanes] += sum[i];
  }

  __device__ __forceinline__ void park(int token, const LaneSum& sum) {
#pragma unroll
    for (int i = 0; i < kLaneFeatures; ++i) shared.carry[group.index][group.lane + i * kRowLanes] = sum[i];
    if (group.lane == 0) shared.carry_token[group.index] = token;
  }

  // A hit's query token, looked up by one lane for its half warp.
  struct Source {
    int64_t row = 0;
    float factor = 0.f;
    int token = kNoToken;
    bool inside = false;  // else there is no such token, whatever the argmax says
  };
  __device__ __forceinline__ Source source_of(int place) const {
    Source out;
    const uint32_t number = shared.number[place], width = static_cast<uint32_t>(problem.argmax_width);
    const int64_t n = range.from + number / width;
    const int slot = static_cast<int>(number % width);
    const Span query = span_of(problem.queries, nth_partner(problem, args.by_document, false, segment, n));
    out.token = shared.sort.token[place];
    out.inside = slot < query.length;
    if (!out.inside) return out;
    out.row = query.begin + slot * problem.queries.token_stride;
    out.factor = args.grad_scores[nth_pair(problem, args.by_document, false, segment, n)];
    if (problem.normalize) out.factor *= args.query_norms[query.first_row + slot];
    return out;
  }

  // Adds up the collected hits for one chunk of features.
  __device__ __forceinline__ void sum_hits(const uint16_t* order, int hits) {
    const int from = hits * group.index / T::kGroups, to = hits * (group.index + 1) / T::kGroups;
    const uint16_t* token_of = shared.sort.token;
    int current = from < to ? token_of[order[from]] : kNoToken;
    // A run that began in an earlier share is finished there.
    bool foreign = from < to && from > 0 && token_of[order[from - 1]] == current;
    if (group.lane == 0) shared.carry_token[group.index] = from < to ? kNoToken : kEmptyShare;
    LaneSum sum = {};
#pragma unroll 1
    for (int i0 = from; i0 < to; i0 += kRowLanes) {
      Source mine;
      if (i0 + group.lane < to) mine = source_of(order[i0 + group.lane]);
      const unsigned inside = __ballot_sync(group.mask, mine.inside) >> (threadIdx.x & 16);
      const int count = min(kRowLanes, to - i0);
#pragma unroll 1
      for (int s = 0; s < count; s += Rows::kBatch) {
        typename Rows::Raw raw[Rows::kBatch];
#pragma unroll
        for (int u = 0; u < Rows::kBatch; ++u)
          raw[u] = Rows::fetch(problem.queries, __shfl_sync(group.mask, mine.row, s + u, kRowLanes), k,
                               inside >> (s + u) & 1);
#pragma unroll
        for (int u = 0; u < Rows::kBatch; ++u) {
          const int token = __shfl_sync(group.mask, mine.token, s + u, kRowLanes);
          const float factor = __shfl_sync(group.mask, mine.factor, s + u, kRowLanes);
          if (token != current && token != kNoToken) {
            if (foreign)
              park(current, sum);
            else
              finish_run(current, sum);
            foreign = false;
            current = token;
#pragma unroll
            for (int j = 0; j < kLaneFeatures; ++j) sum[j] = 0.f;
          }
          Rows::add(raw[u], factor, sum);
        }
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
      finish_run(current, sum);
    }
    __syncthreads();
  }

  // Rows of the slice that nothing won; those behind the document's end too, where the side is padded.
  __device__ __forceinline__ void write_zeros(int rows) {
    if (k >= own.dim) return;
    const int size = static_cast<int>(element_size(own.dtype));
    const int64_t row_bytes = own.dim * size, left = own.dim - k;
    char* out = static_cast<char*>(args.grad_documents) + (first_row + group.index) * row_bytes + k * size;
    const int bytes = static_cast<int>(left < kLaneFeatures ? left : kLaneFeatures) * size;
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

  // Tokens [slice_first, slice_first + rows) of the document, of which it need not have all. False, with nothing
  // written, where they have more hits than fit. What one token has is summed in any case, if need be in several
  // collections whose sum stays in shared memory.
  __device__ __forceinline__ bool run(const Span& span, int64_t slice_first, int rows) {
    first = slice_first;
    const int64_t left = span.length - first;
    tokens = static_cast<int>(left < 0 ? 0 : left < rows ? left : rows);
    begin = span.begin + first * own.token_stride;
    norm_row = span.first_row + first;
    first_row = own.packed() ? norm_row : segment * own.extent + first;
    __syncthreads();
    for (int i = threadIdx.x; i < tokens; i += T::kThreads) {
      shared.touched[i] = false;
      shared.dots[i] = 0.f;
    }
    const uint16_t* order = nullptr;
    const int chunks = static_cast<int>(projection.chunks), steps = projection.passes * chunks;
    bool from_start = true, more = true;
    overflows = false;
    for (int step = 0; step < steps;) {
      if (from_start) restart();
      if (more) {
        more = !collect_hits();
        if (more && rows > 1) return false;
        overflows |= more;
        order = shared.sort.run(shared.starts, tokens);
      }
      pass = step / chunks;
      k = (step - pass * chunks) * kRowFeatures + group.lane * kLaneFeatures;
      if (!T::kZeroed && !overflows && projection.writes(pass)) write_zeros(rows);
      sum_hits(order, shared.sort.total());
      from_start = false;
      if (more) continue;
      if (overflows && group.index == 0) {
        LaneSum sum;
#pragma unroll
        for (int i = 0; i < kLaneFeatures; ++i) sum[i] = shared.sum[group.lane + i * kRowLanes];
        finish_row(0, sum);
      }
      ++step;
      from_start = more = overflows;
    }
    return true;
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
    const Span span = span_of(own, segment);
    const int64_t extent = own.packed() ? span.length : own.extent;
    slice.segment = segment;
    slice.range = pairs_of(args.problem, args.by_document, false, segment);
    for (int64_t first = int64_t{blockIdx.y} * slice_tokens; first < extent;
         first += int64_t{gridDim.y} * slice_tokens) {
      // Slices with too many hits are halved until they fit.
      const int64_t end = min(first + slice_tokens, extent);
      int64_t size = end - first;
      for (int64_t at = first; at < end;) {
        size = min(size, end - at);
        if (slice.run(span, at, static_cast<int>(size)))
          at += size;
        else
          size = (size + 1) / 2;
      }
    }
  }
  ptx::wait_for_prior_kernel();  // who waits for this kernel waits for both gradients
}

}  // namespace cuda
}  // namespace maxsim
