// Launches the soft maximum's kernels: which way to multiply, norms first, and a grid for each pass.
#include "soft.h"

#include <algorithm>
#include <cmath>

#include "check.h"
#include "soft_backward.cuh"
#include "soft_forward.cuh"

namespace maxsim {
namespace cuda {
namespace {

constexpr unsigned kMostBlocks = 65535;  // of a grid's second and third axis

// 1 / norm of every token row that a span can name; a warp takes a row.
__global__ void __launch_bounds__(128) soft_norms(Segments side, float* norms) {
  const int64_t total = side.count * side.extent;
  for (int64_t i = int64_t{blockIdx.x} * 4 + threadIdx.x / 32; i < total; i += int64_t{gridDim.x} * 4) {
    const int64_t segment = quotient(i, side.extent), token = i - segment * side.extent;
    const int64_t row = side.stride(side.segment_stride, segment) + token * side.token_stride;
    float square = 0.f;
    for (int64_t k = threadIdx.x % 32; k < side.dim; k += 32) {
      const float value = load_feature(side, row, k);
      square = fmaf(value, value, square);
    }
    for (int step = 16; step; step /= 2) square += __shfl_xor_sync(~0u, square, step);
    const float norm = sqrtf(square);
    if (threadIdx.x % 32 == 0) norms[i] = 1.f / (norm < kNormEps ? kNormEps : norm);
  }
}

int64_t norm_count(const Segments& side) { return side.count * side.extent; }

unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>(std::max<int64_t>(1, std::min<int64_t>(count, int64_t{8} * current_device().sms)));
}

SoftArgs prepare(const Problem& problem, double tau, void* workspace, cudaStream_t stream) {
  SoftArgs args{};
  args.problem = problem;
  args.to_log = static_cast<float>(1.4426950408889634 / tau);
  args.width = problem.argmax_width;
  if (!problem.normalize) return args;
  float* norms = static_cast<float*>(workspace);
  args.query_norms = norms;
  args.document_norms = norms + norm_count(problem.queries);
  for (const Segments* side : {&problem.queries, &problem.documents}) {
    soft_norms<<<blocks_for(norm_count(*side) / 4 + 1), 128, 0, stream>>>(*side, norms);
    norms += norm_count(*side);
  }
  check(cudaGetLastError(), "soft_norms");
  return args;
}

unsigned threads_for(const Segments& side) { return side.extent <= kSoftRows / 2 ? 64 : 128; }

int64_t row_blocks(const Segments& side) {
  const int64_t rows = threads_for(side) / 2;
  return (side.extent + rows - 1) / rows;
}

// Blocks that share the segments which a segment of `side` meets: as many as it takes to give every SM some, and as
// 16 MiB of sums have room for.
int splits_of(const Problem& problem, const Segments& side) {
  const bool queries = &side == &problem.queries;
  const int64_t others = problem.pairing == Pairing::slab ? (queries ? problem.documents.inner : 1)
                         : queries                        ? problem.documents.count
                                                          : problem.queries.count;
  const int64_t blocks = std::max<int64_t>(1, side.count * row_blocks(side));
  const int64_t bytes = std::max<int64_t>(1, norm_count(side) * (side.dim + 1) * int64_t{sizeof(float)});
  const int64_t wanted = std::min(int64_t{6} * current_device().sms / blocks, (int64_t{16} << 20) / bytes);
  return static_cast<int>(std::max<int64_t>(1, std::min(wanted, others)));
}

int64_t partial_count(const Problem& problem, const Segments& side) {
  const int splits = splits_of(problem, side);
  return splits > 1 ? splits * norm_count(side) * (side.dim + 1) : 0;
}

template <class Op, bool kQueries>
void backward_side(SoftArgs args, float* partial, void* out, cudaStream_t stream) {
  const Segments& side = kQueries ? args.problem.queries : args.problem.documents;
  if (!out || !side.count || !side.extent) return;
  args.splits = splits_of(args.problem, kQueries ? args.problem.queries : args.problem.documents);
  args.partial = partial;
  const unsigned threads = threads_for(side);
  const int64_t rows = row_blocks(side);
  const int64_t chunks = (side.dim + Op::kFeatures - 1) / Op::kFeatures * args.splits;
  if (rows > kMostBlocks || chunks > kMostBlocks || side.count > INT32_MAX)
    throw std::runtime_error("the gradient of a soft maximum takes at most 2^31 segments of 4 million tokens");
  const dim3 grid(static_cast<unsigned>(side.count), static_cast<unsigned>(rows), static_cast<unsigned>(chunks));
  soft_backward<Op, kQueries><<<grid, threads, 0, stream>>>(args, out);
  check(cudaGetLastError(), "soft_backward");
  if (args.splits == 1) return;
  soft_add_splits<kQueries><<<blocks_for(norm_count(side) / 4 + 1), 128, 0, stream>>>(args, out);
  check(cudaGetLastError(), "soft_add_splits");
}

// Calls call(Op) with the way to multiply on this path.
template <class Call>
void with_op(const Problem& problem, Path path, const Call& call) {
  path = choose_path(path, problem);
  const DType type = problem.queries.dtype;
  const bool same = type == problem.documents.dtype;
  if (path == Path::fma)
    call(SoftFma());
  else if (same && type == DType::f16)
    call(SoftHalf<__half>());
  else if (path == Path::sm75)
    call(SoftFma());
  else if (same && type == DType::bf16)
    call(SoftHalf<__nv_bfloat16>());
  else
    call(SoftSplit());
}

}  // namespace

int64_t soft_workspace(const Problem& problem, bool backward) {
  if (problem.queries.packed() || problem.documents.packed() || problem.pairing == Pairing::list)
    throw std::runtime_error("the soft maximum of packed tokens or listed pairs has no CUDA kernel");
  int64_t floats = problem.normalize ? norm_count(problem.queries) + norm_count(problem.documents) : 0;
  if (backward) floats += std::max(partial_count(problem, problem.queries), partial_count(problem, problem.documents));
  return floats * static_cast<int64_t>(sizeof(float));
}

void soft_forward(const Problem& problem, Path path, double tau, float* scores, float* parts, void* workspace,
                  cudaStream_t stream) {
  if (problem.pairs == 0) return;
  SoftArgs args = prepare(problem, tau, workspace, stream);
  args.scores = scores;
  args.parts = parts;
  const unsigned threads = threads_for(problem.queries);
  with_op(problem, path,
          [&](auto op) { soft_forward<decltype(op)><<<blocks_for(problem.pairs), threads, 0, stream>>>(args); });
  check(cudaGetLastError(), "soft_forward");
}

void soft_backward(const Problem& problem, Path path, double tau, const float* grad_scores, const float* parts,
                   void* grad_queries, void* grad_documents, void* workspace, cudaStream_t stream) {
  if (problem.pairs == 0) return;
  SoftArgs args = prepare(problem, tau, workspace, stream);
  args.grad_scores = grad_scores;
  args.parts = const_cast<float*>(parts);
  float* partial = static_cast<float*>(workspace);
  if (problem.normalize) partial += norm_count(problem.queries) + norm_count(problem.documents);
  with_op(problem, path, [&](auto op) {
    backward_side<decltype(op), true>(args, partial, grad_queries, stream);
    backward_side<decltype(op), false>(args, partial, grad_documents, stream);
  });
}

}  // namespace cuda
}  // namespace maxsim
