// Which kernel scores residual documents: tensor cores for 16-bit centroids of up to 128 features, else multiply-adds.
#include "residual_launch.h"

#include <algorithm>

#include "approx.cuh"
#include "check.h"
#include "fma_forward.cuh"
#include "forward_args.cuh"
#include "mma_select.h"
#include "residual_args.cuh"
#include "residual_config.cuh"
#include "residual_select.h"
#include "sm90_residual_select.h"

namespace maxsim {
namespace cuda {
namespace {

bool multiple_of_16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// bf16 queries fit into halves after a division by a power of two; the other way round they would lose digits.
bool tensor_cores_take(const Problem& problem, const Residuals& r, Path path) {
  const DType query = problem.queries.dtype;
  const bool types = r.centroid_type == DType::f16
                         ? query != DType::f32
                         : r.centroid_type == DType::bf16 && query == DType::bf16 && mma_arch() >= 80;
  return path != Path::fma && types && r.dim <= kMaxResidualDim && r.dim % 8 == 0 && r.centroid_count > 0 &&
         r.centroid_count <= INT32_MAX && multiple_of_16(r.centroids) && problem.documents.extent <= INT32_MAX;
}

void forward_fma(const Problem& problem, const Residuals& residuals, float* scores, int32_t* argmax,
                 cudaStream_t stream) {
  constexpr int64_t kPerSm = 8;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(problem.pairs, kPerSm * current_device().sms));
  const ResidualTokens tokens{residuals};
  if (argmax)
    fma_forward<true><<<blocks, FmaTile::kThreads, 0, stream>>>(problem, tokens, residuals.normalize, scores, argmax);
  else
    fma_forward<false><<<blocks, FmaTile::kThreads, 0, stream>>>(problem, tokens, residuals.normalize, scores, nullptr);
  check(cudaGetLastError(), "residual fma_forward");
}

int32_t chunks_of(const Problem& problem) {
  return static_cast<int32_t>(std::max<int64_t>(1, ceil_div(problem.queries.extent, 32)));
}

bool rows_are_aligned(const Residuals& r) { return r.row_bytes % r.nbits == 0 && multiple_of_16(r.bytes); }

// Of no groups where the kernel of another path takes these documents.
StreamGrid stream_grid(const Problem& problem, const Residuals& residuals, Path path) {
  const bool takes = choose_path(path, problem) == Path::sm90 && tensor_cores_take(problem, residuals, path) &&
                     rows_are_aligned(residuals);
  return takes ? sm90_residual_grid(problem, residuals, chunks_of(problem)) : StreamGrid{};
}

}  // namespace

int64_t residual_workspace(const Problem& problem, const Residuals& residuals, Path path) {
  return problem.pairs ? stream_grid(problem, residuals, path).bytes : 0;
}

void residual_forward(const Problem& problem, const Residuals& residuals, Path path, float* scores, int32_t* argmax,
                      void* workspace, cudaStream_t stream) {
  const StreamGrid grid = stream_grid(problem, residuals, path);  // refuses what does not run here
  if (problem.pairs == 0) return;
  if (!tensor_cores_take(problem, residuals, path)) return forward_fma(problem, residuals, scores, argmax, stream);
  const ResidualArgs args{problem, residuals, scores, argmax, chunks_of(problem), 1, rows_are_aligned(residuals), {}};
  if (grid.groups) return sm90_residual(args, grid, workspace, stream);
  residuals.centroid_type == DType::f16 ? residual_select_f16(args, stream) : residual_select_bf16(args, stream);
}

void approx_forward(const Problem& problem, const Approximation& approximation, float* scores, cudaStream_t stream) {
  if (problem.pairs == 0) return;
  const ApproxArgs args{problem, approximation, scores};
  const Segments& documents = problem.documents;
  const int64_t width = problem.queries.dim;
  const bool wide = width % 4 == 0 && width <= 128 && multiple_of_16(approximation.centroid_scores);
  // Twice as many tokens as a team reads at once: documents of fewer leave some of it idle.
  const int64_t tokens = documents.packed() ? documents.extent / documents.count : documents.extent;
  if (wide && tokens >= 2 * 32 * kApproxTeam) {
    // A block each, so that whoever is done takes the next one.
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(problem.pairs, INT32_MAX));
    approx_scores<4, kApproxTeam><<<blocks, kApproxThreads<kApproxTeam>, 0, stream>>>(args);
  } else {
    constexpr int kPerSm = 8;
    const auto kernel = wide ? approx_scores<4, 1> : approx_scores<1, 1>;
    const int64_t wanted = ceil_div(problem.pairs, kApproxThreads<1> / 32);
    kernel<<<grid(wanted, kPerSm), kApproxThreads<1>, 0, stream>>>(args);
  }
  check(cudaGetLastError(), "approx_scores");
}

}  // namespace cuda
}  // namespace maxsim
