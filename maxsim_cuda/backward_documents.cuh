// The documents' gradient: a block owns a slice of a document's tokens. It collects the query tokens that the slice
// won, sorts them by winner, keeping their order, and deals the sorted list out evenly to its half warps, so that a
// token that wins everything costs no more than many that win once. Every row is summed in one order and written once.
#pragma once

#include "backward_collect.cuh"
#include "ptx/dependent_launch.cuh"

namespace maxsim {
namespace cuda {

// A sum of a run that began in an earlier share, and is finished there.
template <typename T, typename Rows>
__device__ __forceinline__ void park(DocumentShared<T, Rows>& shared, const RowGroup& group, int token,
                                     const LaneSum& sum) {
#pragma unroll
  for (int i = 0; i < kLaneFeatures; ++i) shared.sums.carry[group.index][group.lane + i * kRowLanes] = sum[i];
  if (group.lane == 0) shared.carry_token[group.index] = token;
}

// What becomes of the sum of a run of equal winners.
enum class Run : int32_t {
  whole,    // it is its row's
  foreign,  // it is parked
  part,     // one of several collections of a row
};

// Out of line: what is done once for all that a row won.
template <typename T, typename Rows>
__device__ __noinline__ void finish_run(const BackwardArgs& args, DocumentShared<T, Rows>& shared, Run run, int token,
                                        int64_t k, int pass, float4 low, float4 high) {
  LaneSum sum = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  const RowGroup group;
  if (run == Run::foreign) return park(shared, group, token, sum);
  if (run == Run::part) {
#pragma unroll
    for (int i = 0; i < kLaneFeatures; ++i) shared.sum[group.lane + i * kRowLanes] += sum[i];
    return;
  }
  const Segments& own = args.problem.documents;
  const Slice& slice = shared.slice;
  if (args.problem.normalize) {
    const Projection projection(args.problem);
    const int64_t at = slice.begin + token * own.token_stride;
    float dot;
    if (projection.passes == 1) {
      dot = group.sum(lane_dot(own, at, k, sum));
    } else if (!projection.writes(pass)) {
      const float part = group.sum(lane_dot(own, at, k, sum));
      if (group.lane == 0) shared.dots[token] += part;
      return;
    } else {
      dot = shared.dots[token];
    }
    project(own, at, k, args.document_norms[slice.norm_row + token], dot, sum);
  }
  store_row(args.grad_documents, own, slice.first_row + token, k, sum);
}

template <typename T, typename Rows>
struct DocumentSlice {
  static constexpr int kNoToken = -1, kEmptyShare = -2;

  const BackwardArgs& args;
  const Problem& problem;
  const Segments& own;
  DocumentShared<T, Rows>& shared;
  const bool zeroed;  // rows that nothing won are zeros already
  RowGroup group;
  HitCollector<T, Rows> collector;

  __device__ DocumentSlice(const BackwardArgs& args, bool zeroed, DocumentShared<T, Rows>& shared)
      : args(args),
        problem(args.problem),
        own(args.problem.documents),
        shared(shared),
        zeroed(zeroed),
        collector{args, args.problem, shared} {}

  __device__ __forceinline__ Hit<Rows> look_up(int place) const {
    const uint32_t number = shared.number[place], width = static_cast<uint32_t>(problem.argmax_width);
    const uint32_t pair = number / width, slot = number - pair * width;
    const int64_t segment = shared.slice.segment, n = shared.slice.range.from + pair;
    const Span query = span_of(problem.queries, nth_partner(problem, args.by_document, false, segment, n));
    Hit<Rows> out;
    out.token = shared.sort.token[place];
    out.place = Rows::place(query.begin + slot * problem.queries.token_stride);
    out.factor = args.grad_scores[nth_pair(problem, args.by_document, false, segment, n)];
    if (problem.normalize) out.factor *= args.query_norms[query.first_row + slot];
    return out;
  }

  __device__ __forceinline__ void finish(Run run, int token, int64_t k, int pass, const LaneSum& sum) {
    finish_run(args, shared, run, token, k, pass, {sum[0], sum[1], sum[2], sum[3]}, {sum[4], sum[5], sum[6], sum[7]});
  }

  // Adds up the collected hits for one chunk of features. `overflows`: of one token, whose hits come in several goes.
  // Rows that go out as they are summed are written in the loop: a call there would cost it the registers of its rows.
  template <bool kPlain>
  __device__ __forceinline__ void sum_hits(const uint16_t* order, int64_t k, int pass, bool overflows) {
    const int hits = shared.sort.total();
    const int from = hits * group.index / T::kGroups, to = hits * (group.index + 1) / T::kGroups;
    const uint16_t* token_of = shared.sort.token;
    const Run kind = overflows ? Run::part : Run::whole;
    int current = from < to ? token_of[order[from]] : kNoToken;
    Run run = from < to && from > 0 && token_of[order[from - 1]] == current ? Run::foreign : kind;
    const int row_bytes = static_cast<int>(own.dim * element_size(own.dtype));
    char* const rows =
        static_cast<char*>(args.grad_documents) + (shared.slice.first_row * own.dim + k) * element_size(own.dtype);
    if (group.lane == 0) shared.carry_token[group.index] = from < to ? kNoToken : kEmptyShare;
    Hit<Rows>* const found = shared.sums.found[group.index];
    LaneSum sum = {};
    Hit<Rows> next;
    // Half warps take as many turns as the largest share does, after one that only looks the first hits up.
    const int turns = ((hits + T::kGroups - 1) / T::kGroups + kRowLanes - 1) / kRowLanes;
#pragma unroll 1
    for (int turn = 0, i0 = from - kRowLanes; turn <= turns; ++turn, i0 += kRowLanes) {
      __syncwarp();
      found[group.lane] = next;
      __syncwarp();
      if (i0 + kRowLanes + group.lane < to) next = look_up(order[i0 + kRowLanes + group.lane]);
      const int count = i0 < from ? 0 : max(0, min(kRowLanes, to - i0));
      const auto take = [&](const typename Rows::Raw& raw, const Hit<Rows>& hit) {
        if (hit.token != current) {
          if constexpr (!kPlain)
            finish(run, current, k, pass, sum);
          else if (run == Run::foreign)
            park(shared, group, current, sum);
          else if (k < own.dim)
            Rows::store(rows + static_cast<int64_t>(current) * row_bytes, sum);
          current = hit.token;
          run = kind;
#pragma unroll
          for (int j = 0; j < kLaneFeatures; ++j) sum[j] = 0.f;
        }
        Rows::add(raw, hit.factor, sum);
      };
      add_hits<Rows, Rows::kBatch>(problem.queries, found, count, k, take);
    }
    if (run == Run::foreign && from < to) finish(run, current, k, pass, sum);
    __syncthreads();
    if (run != Run::foreign && from < to) {
      for (int next = group.index + 1; next < T::kGroups; ++next) {
        const int token = shared.carry_token[next];
        if (token == kEmptyShare) continue;
        if (token != current) break;
#pragma unroll
        for (int i = 0; i < kLaneFeatures; ++i) sum[i] += shared.sums.carry[next][group.lane + i * kRowLanes];
      }
      finish(run, current, k, pass, sum);
    }
    __syncthreads();
  }

  // Rows of the slice that nothing won; those behind the document's end too, where the side is padded.
  __device__ __forceinline__ void write_zeros(int rows, int64_t k) {
    if (k >= own.dim) return;
    const int size = static_cast<int>(element_size(own.dtype));
    const int64_t row_bytes = own.dim * size, left = own.dim - k;
    char* out = static_cast<char*>(args.grad_documents) + (shared.slice.first_row + group.index) * row_bytes + k * size;
    const int bytes = static_cast<int>(left < kLaneFeatures ? left : kLaneFeatures) * size;
    const bool vectors = own.dim % kLaneFeatures == 0;
    for (int token = group.index; token < rows; token += T::kGroups, out += T::kGroups * row_bytes) {
      if (token < shared.slice.tokens && shared.touched[token]) continue;
      if (vectors) {
        *reinterpret_cast<uint4*>(out) = {};
        if (bytes > 16) *reinterpret_cast<uint4*>(out + 16) = {};
      } else {
        for (int i = 0; i < bytes; i += 2) *reinterpret_cast<uint16_t*>(out + i) = 0;
      }
    }
  }

  // Tokens [first, first + rows) of a document, of which it need not have all. False, with nothing written,
  // where they have more hits than fit. What one token has is summed in any case, if need be in several collections
  // whose sum stays in shared memory.
  __device__ __forceinline__ bool run(int64_t segment, const Span& span, const PairRange& range, int64_t first,
                                      int rows) {
    __syncthreads();
    if (threadIdx.x == 0) {
      const int64_t left = span.length - first, norm_row = span.first_row + first;
      shared.slice = {segment,
                      range,
                      first,
                      span.begin + first * own.token_stride,
                      norm_row,
                      own.packed() ? norm_row : segment * own.extent + first,
                      static_cast<int>(max(int64_t{0}, min(left, int64_t{rows})))};
    }
    for (int i = threadIdx.x; i < rows; i += T::kThreads) {
      shared.touched[i] = false;
      shared.dots[i] = 0.f;
    }
    __syncthreads();
    const Projection projection(problem);
    const uint16_t* order = nullptr;
    const int chunks = static_cast<int>(projection.chunks), steps = projection.passes * chunks;
    bool from_start = true, more = true;
    bool overflows = false;  // one token, whose hits are summed in several goes
    for (int step = 0; step < steps;) {
      if (from_start) collector.restart();
      if (more) {
        more = !collector.collect_hits();
        if (more && rows > 1) return false;
        overflows |= more;
        order = shared.sort.run(shared.starts, shared.slice.tokens);
      }
      const int pass = step / chunks;
      const int64_t k = (step - pass * chunks) * kRowFeatures + group.lane * kLaneFeatures;
      if (!zeroed && !overflows && projection.writes(pass)) write_zeros(rows, k);
      if (Rows::stores(own) && !problem.normalize && !overflows)
        sum_hits<true>(order, k, pass, false);
      else
        sum_hits<false>(order, k, pass, overflows);
      from_start = false;
      if (more) continue;
      if (overflows && group.index == 0) {
        LaneSum sum;
#pragma unroll
        for (int i = 0; i < kLaneFeatures; ++i) sum[i] = shared.sum[group.lane + i * kRowLanes];
        finish(Run::whole, 0, k, pass, sum);
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
    backward_documents(const __grid_constant__ BackwardArgs args, int slice_tokens, bool zeroed) {
  extern __shared__ __align__(16) unsigned char memory[];
  DocumentShared<T, Rows>& shared = *reinterpret_cast<DocumentShared<T, Rows>*>(memory);
  DocumentSlice<T, Rows> slice(args, zeroed, shared);
  const Segments& own = args.problem.documents;
  for (int64_t segment = blockIdx.x; segment < own.count; segment += gridDim.x) {
    const Span span = span_of(own, segment);
    const int64_t extent = own.packed() ? span.length : own.extent;
    const PairRange range = pairs_of(args.problem, args.by_document, false, segment);
    for (int64_t first = int64_t{blockIdx.y} * slice_tokens; first < extent;
         first += int64_t{gridDim.y} * slice_tokens) {
      // Slices with too many hits are halved until they fit.
      const int64_t end = min(first + slice_tokens, extent);
      int64_t size = end - first;
      for (int64_t at = first; at < end;) {
        size = min(size, end - at);
        if (slice.run(segment, span, range, at, static_cast<int>(size)))
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
